// SPDX-License-Identifier: Apache-2.0
// The gate of the SwiGLU feed-forward (Shazeer 2020): y = silu(g) u, silu(g) = g s, s = 1 / (1 + e^-g).
#ifndef MINDFORMERS_NATIVE_SWIGLU_H_
#define MINDFORMERS_NATIVE_SWIGLU_H_

#include <cstdint>

namespace mf {

struct SwiGluKernels {
  void (*forward)(const float* gate, const float* up, int64_t n, float* y);
  // dgate = dy u s (1 + g (1 - s)), dup = dy g s
  void (*backward)(const float* gate, const float* up, const float* dy, int64_t n, float* dgate, float* dup);
};
const SwiGluKernels& swiglu_kernels();

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_SWIGLU_H_

// SPDX-License-Identifier: Apache-2.0
// Root mean square norm (Zhang and Sennrich 2019): y = x r w, r = 1 / sqrt(mean(x^2) + eps).
#ifndef MINDFORMERS_NATIVE_NORM_H_
#define MINDFORMERS_NATIVE_NORM_H_

#include <cstdint>

namespace mf {

struct NormKernels {
  // y[d] of one row.
  void (*forward)(const float* x, const float* weight, float eps, int64_t d, float* y);
  // dx[d] of one row; adds to dweight[d] what the row gives it.
  void (*backward)(const float* x, const float* weight, const float* dy, float eps, int64_t d, float* dx,
                   float* dweight);
};

const NormKernels& norm_kernels();

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_NORM_H_

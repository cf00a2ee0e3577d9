// SPDX-License-Identifier: Apache-2.0
// The gate of SwiGLU. Compiled once per variant.
#include "simd.h"
#include "swiglu.h"

namespace mf {
namespace MF_ISA {
namespace {

void forward(const float* gate, const float* up, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec g = load(gate + i);
    store(y + i, g * sigmoid(g) * load(up + i));
  }
  if (i < n) {
    const Vec g = load_some(gate + i, n - i);
    store_some(y + i, g * sigmoid(g) * load_some(up + i, n - i), n - i);
  }
}

void backward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate, float* dup) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec g = load(gate + i), d = load(dy + i), s = sigmoid(g);
    store(dgate + i, d * load(up + i) * s * (1.0f + g * (1.0f - s)));
    store(dup + i, d * g * s);
  }
  if (i < n) {
    const Vec g = load_some(gate + i, n - i), d = load_some(dy + i, n - i), s = sigmoid(g);
    store_some(dgate + i, d * load_some(up + i, n - i) * s * (1.0f + g * (1.0f - s)), n - i);
    store_some(dup + i, d * g * s, n - i);
  }
}

}  // namespace

const SwiGluKernels& swiglu_kernels() {
  static constexpr SwiGluKernels table{forward, backward};
  return table;
}

}  // namespace MF_ISA
}  // namespace mf

// SPDX-License-Identifier: Apache-2.0
// Rows of the root mean square norm. Compiled once per variant.
#include "norm.h"
#include "simd.h"

namespace mf {
namespace MF_ISA {
namespace {

float inverse_root_mean_square(const float* x, float eps, int64_t d) {
  return 1.0f / std::sqrt(dot(x, x, d) / static_cast<float>(d) + eps);
}

void forward(const float* x, const float* weight, float eps, int64_t d, float* y) {
  const float r = inverse_root_mean_square(x, eps, d);
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) store(y + i, load(x + i) * r * load(weight + i));
  for (; i < d; ++i) y[i] = x[i] * r * weight[i];
}

// With g = dy w:  dx = r g - x r^3 / d sum(g x),  dw += dy x r.
void backward(const float* x, const float* weight, const float* dy, float eps, int64_t d, float* dx, float* dweight) {
  const float r = inverse_root_mean_square(x, eps, d);
  Vec total = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) total += load(dy + i) * load(weight + i) * load(x + i);
  float inner = sum(total);
  for (; i < d; ++i) inner += dy[i] * weight[i] * x[i];
  const float c = inner * r * r * r / static_cast<float>(d);
  for (i = 0; i + kLanes <= d; i += kLanes) {
    const Vec xi = load(x + i);
    const Vec dyi = load(dy + i);
    store(dx + i, dyi * load(weight + i) * r - xi * c);
    store(dweight + i, load(dweight + i) + dyi * xi * r);
  }
  for (; i < d; ++i) {
    dx[i] = dy[i] * weight[i] * r - x[i] * c;
    dweight[i] += dy[i] * x[i] * r;
  }
}

}  // namespace

const NormKernels& norm_kernels() {
  static constexpr NormKernels table{forward, backward};
  return table;
}

}  // namespace MF_ISA
}  // namespace mf

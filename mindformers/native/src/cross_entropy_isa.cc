// SPDX-License-Identifier: Apache-2.0
// Rows of the cross entropy. Compiled once per variant.
#include "cross_entropy.h"
#include "simd.h"

namespace mf {
namespace MF_ISA {
namespace {

constexpr float kLowest = -3e38f;

float highest_of(const float* z, int64_t n) {
  Vec top = splat(kLowest);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = maximum(top, load(z + i));
  if (i < n) top = maximum(top, load_some(z + i, n - i, kLowest));
  return highest(top);
}

float row(float* z, int64_t n, int64_t label, float mask, uint16_t* dz_rounded) {
  const float at_label = z[label], most = highest_of(z, n);
  Vec total = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec e = exponential(load(z + i) - most);
    total += e;
    store(z + i, e);
  }
  float all = sum(total);
  for (; i < n; ++i) {
    z[i] = std::exp(z[i] - most);
    all += z[i];
  }
  const float scale = mask / all;
  z[label] -= all;  // (e - sum) mask / sum = (p - 1) mask
  if (dz_rounded != nullptr) {
    for (i = 0; i + kLanes <= n; i += kLanes) store(dz_rounded + i, load(z + i) * scale);
    for (; i < n; ++i) from_float(dz_rounded + i, z[i] * scale);
  } else {
    for (i = 0; i + kLanes <= n; i += kLanes) store(z + i, load(z + i) * scale);
    for (; i < n; ++i) z[i] *= scale;
  }
  return std::log(all) + most - at_label;
}

float loss(const float* z, int64_t n, int64_t label) {
  const float most = highest_of(z, n);
  Vec total = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) total += exponential(load(z + i) - most);
  float all = sum(total);
  for (; i < n; ++i) all += std::exp(z[i] - most);
  return std::log(all) + most - z[label];
}

void scale(const float* x, float factor, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i) * factor);
  for (; i < n; ++i) y[i] = x[i] * factor;
}

}  // namespace

const CrossEntropyKernels& cross_entropy_kernels() {
  static constexpr CrossEntropyKernels table{row, loss, scale};
  return table;
}

}  // namespace MF_ISA
}  // namespace mf

// SPDX-License-Identifier: Apache-2.0
// Products of a few rows with a weight matrix stored (out, in): y[r][n] = scale[n] sum_k x[r][k] w[n][k].
//
// Up to four rows are multiplied at a time; the next four find the weight rows in the cache, where a caller hands out
// few of these at a time. Stored as bfloat16 or int8 they are widened to float in registers, so the memory's speed
// counts for two or four times as many weights.
#ifndef MINDFORMERS_NATIVE_PRODUCT_H_
#define MINDFORMERS_NATIVE_PRODUCT_H_

#include <cstdint>

namespace mf {

enum class WeightFormat { kFloat32, kBFloat16, kInt8 };

struct Weight {
  const void* data = nullptr;
  const float* scale = nullptr;  // (rows), of int8 only
  int64_t rows = 0;
  int64_t cols = 0;
  WeightFormat format = WeightFormat::kFloat32;
};

inline int64_t bytes_of(WeightFormat format) {
  return format == WeightFormat::kFloat32 ? 4 : format == WeightFormat::kBFloat16 ? 2 : 1;
}

// Weight rows are handed out in multiples of this, a multiple of every block of rows a kernel takes.
constexpr int64_t kWeightRows = 12;

struct ProductKernels {
  // y[r][n], r < count and begin <= n < end, from x (count, cols); rows of y are y_stride apart. With `add` the
  // product is added to what y holds.
  void (*product)(const Weight& weight, const float* x, int64_t count, int64_t begin, int64_t end, float* y,
                  int64_t y_stride, bool add);
};

const ProductKernels& product_kernels();

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_PRODUCT_H_

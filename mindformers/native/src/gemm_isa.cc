// SPDX-License-Identifier: Apache-2.0
// Matrix products for machines without oneDNN's: blocks of op(A) and op(B) are copied in the order they are read in.
// Compiled once per variant.
#include "gemm.h"
#include "simd.h"

namespace mf {
namespace MF_ISA {
namespace {

constexpr int64_t kRows = 4;  // of the tile of C kept in registers
constexpr int64_t kColumns = 2 * kLanes;
constexpr int64_t kDepth = 256;  // of a block of op(B)

// c (rows <= kRows, columns <= kColumns) += a (rows, depth) b (depth, kColumns), b packed and padded with zeros.
void tile(int64_t rows, int64_t columns, int64_t depth, const float* a, const float* b, float* c, int64_t ldc) {
  Vec total[kRows][2];
  for (int64_t i = 0; i < kRows; ++i) total[i][0] = total[i][1] = splat(0.0f);
  for (int64_t p = 0; p < depth; ++p) {
    const Vec b0 = load(b + p * kColumns), b1 = load(b + p * kColumns + kLanes);
    for (int64_t i = 0; i < kRows; ++i) {
      const float x = a[p * kRows + i];
      total[i][0] += x * b0;
      total[i][1] += x * b1;
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < 2; ++j) {
      float* to = c + i * ldc + j * kLanes;
      const int64_t left = columns - j * kLanes;
      if (left >= kLanes) {
        store(to, load(to) + total[i][j]);
      } else if (left > 0) {
        store_some(to, load_some(to, left) + total[i][j], left);
      }
    }
  }
}

template <class T>
void product(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
             float beta, float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
  }
  float packed_a[kDepth * kRows], packed_b[kDepth * kColumns];
  for (int64_t p0 = 0; p0 < k; p0 += kDepth) {
    const int64_t depth = k - p0 < kDepth ? k - p0 : kDepth;
    for (int64_t j0 = 0; j0 < n; j0 += kColumns) {
      const int64_t columns = n - j0 < kColumns ? n - j0 : kColumns;
      for (int64_t p = 0; p < depth; ++p) {
        for (int64_t j = 0; j < kColumns; ++j) {
          const int64_t at = tb ? (j0 + j) * ldb + p0 + p : (p0 + p) * ldb + j0 + j;
          packed_b[p * kColumns + j] = j < columns ? to_float(b[at]) : 0.0f;
        }
      }
      for (int64_t i0 = 0; i0 < m; i0 += kRows) {
        const int64_t rows = m - i0 < kRows ? m - i0 : kRows;
        for (int64_t p = 0; p < depth; ++p) {
          for (int64_t i = 0; i < kRows; ++i) {
            const int64_t at = ta ? (p0 + p) * lda + i0 + i : (i0 + i) * lda + p0 + p;
            packed_a[p * kRows + i] = i < rows ? to_float(a[at]) : 0.0f;
          }
        }
        tile(rows, columns, depth, packed_a, packed_b, c + i0 * ldc + j0, ldc);
      }
    }
  }
}

void to_bf16(const float* x, int64_t n, uint16_t* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i));
  for (; i < n; ++i) from_float(y + i, x[i]);
}

}  // namespace

const GemmKernels& gemm_kernels() {
  static constexpr GemmKernels table{product<float>, product<uint16_t>, to_bf16};
  return table;
}

}  // namespace MF_ISA
}  // namespace mf

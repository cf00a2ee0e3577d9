// SPDX-License-Identifier: Apache-2.0
// Matrix products: those of the oneDNN that MindSpore carries, or our own where it is absent.
//
// Everything is row-major: C (m, n) = op(A) op(B) + beta C, op(A) (m, k) is A or its transpose ('N', 'T'), and lda,
// ldb, ldc are the distances between rows as stored. C is float32, A and B are both float32 or both bfloat16.
#ifndef MINDFORMERS_NATIVE_GEMM_H_
#define MINDFORMERS_NATIVE_GEMM_H_

#include <cstdint>

namespace mf {

struct GemmKernels {
  void (*f32)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
              int64_t ldb, float beta, float* c, int64_t ldc);
  void (*b16)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b,
              int64_t ldb, float beta, float* c, int64_t ldc);
  void (*to_bf16)(const float* x, int64_t n, uint16_t* y);
};
const GemmKernels& gemm_kernels();

// On the calling thread.
void gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
          float beta, float* c, int64_t ldc);
void gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b,
          int64_t ldb, float beta, float* c, int64_t ldc);

// Shared by all threads: C is cut along its longer side.
template <class T>
void parallel_gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
                   float beta, float* c, int64_t ldc);

// Round n floats to bfloat16, shared by all threads.
void parallel_to_bf16(const float* x, int64_t n, uint16_t* y);

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_GEMM_H_

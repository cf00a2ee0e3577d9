// SPDX-License-Identifier: Apache-2.0
// Head and loss in one: total = sum_i m_i (log sum_j e^z_ij - z_i,label_i), z = h w^T, for the rows i whose mask m_i is
// not 0. With dz_ij = m_i (e^z_ij / sum - [j = label_i]) the gradients are dh = dz w and dw = dz^T h. Rows are handled
// in blocks, so z exists for one block at a time.
#ifndef MINDFORMERS_NATIVE_CROSS_ENTROPY_H_
#define MINDFORMERS_NATIVE_CROSS_ENTROPY_H_

#include <cstdint>

namespace mf {

struct CrossEntropyKernels {
  // The loss of one row (without its mask); turns z into dz and writes it, rounded, to dz_rounded unless that is null.
  float (*row)(float* z, int64_t n, int64_t label, float mask, uint16_t* dz_rounded);
  // The loss alone.
  float (*loss)(const float* z, int64_t n, int64_t label);
  void (*scale)(const float* x, float factor, int64_t n, float* y);
};
const CrossEntropyKernels& cross_entropy_kernels();

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_CROSS_ENTROPY_H_

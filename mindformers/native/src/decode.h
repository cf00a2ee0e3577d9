// SPDX-License-Identifier: Apache-2.0
// What a step of generation needs beside products: attention of one position over a cache, quantization of rows.
#ifndef MINDFORMERS_NATIVE_DECODE_H_
#define MINDFORMERS_NATIVE_DECODE_H_

#include <cstdint>

#include "product.h"

namespace mf {

// Query heads that share one key/value head, at one position.
struct Attention {
  const float* q;       // (heads, d), already multiplied by 1 / sqrt(d)
  const void* keys;     // (length, d), float32 or bfloat16
  const void* values;   // (length, d)
  WeightFormat format;  // of keys and values
  int64_t heads;
  int64_t length;  // positions that are seen
  int64_t d;
  float* scores;  // (heads, length), scratch
  float* out;     // (heads, d)
};

struct DecodeKernels {
  // softmax(q keys^T) values.
  void (*attend)(const Attention& attention);
  // Numbers stored in the format (not int8) as floats.
  void (*widen)(const void* from, WeightFormat format, float* to, int64_t n);
  // First place of the largest number; n > 0.
  int64_t (*first_highest)(const float* x, int64_t n);
  // q[i] = round(x[i] / scale), scale = max |x| / 127 (returned; 0 for a row of zeros). A row with an infinity or a
  // NaN returns a scale that is not finite.
  float (*quantize_row)(const void* x, WeightFormat format, int64_t n, int8_t* q);
};

const DecodeKernels& decode_kernels();

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_DECODE_H_

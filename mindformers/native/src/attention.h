// SPDX-License-Identifier: Apache-2.0
// Self-attention with rotary positions and grouped queries: o = softmax(R q (R k)^T / sqrt(D) + mask) v.
// R turns the pairs (x_i, x_{i+D/2}) by the angle of the position (Su et al. 2021). Query head h reads key/value head
// h / (N / K) (Ainslie et al. 2023). Blocks of rows see only the keys between the first and the last visible one, so
// a causal mask or one of packed documents skips what it hides. The gradient computes the probabilities again
// (Dao et al. 2022, appendix B.2): ds = p (dp - rowsum(p dp)), dp = do v^T.
#ifndef MINDFORMERS_NATIVE_ATTENTION_H_
#define MINDFORMERS_NATIVE_ATTENTION_H_

#include <cstdint>

namespace mf {

// The keys [begin, end) of a row's first to last visible one; solid: all of them are visible.
struct Span {
  int32_t begin;
  int32_t end;
  bool solid;
};

template <class T>
struct AttentionKernels {
  // y = scale R x of one head, R^T for sign -1; table holds d/2 cosines, then d/2 sines.
  void (*rotate)(const float* x, const float* table, float scale, int64_t d, T* y);
  void (*rotate_back)(const float* x, const float* table, float scale, int64_t d, float* y);
  // Scores of the keys [first, first + width) to probabilities, in `row` and rounded in `rounded` (which may be row).
  // visible: the mask's bytes of keys 0, 1, ...; read only where the span is not solid.
  void (*softmax)(float* row, Span span, const uint8_t* visible, int64_t first, int64_t width, T* rounded);
  // ds from p and dp, in `ds` (which may be dp).
  void (*score_gradient)(const float* p, const float* dp, int64_t width, T* ds);
  void (*round)(const float* x, int64_t n, T* y);
};

struct AttentionTable {
  AttentionKernels<float> f32;
  AttentionKernels<uint16_t> b16;
};
const AttentionTable& attention_kernels();

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_ATTENTION_H_

// SPDX-License-Identifier: Apache-2.0
// Rows of attention between its matrix products. Compiled once per variant.
#include "attention.h"
#include "simd.h"

namespace mf {
namespace MF_ISA {
namespace {

template <class T>
void turn(const float* x, const float* table, float scale, float sign, int64_t d, T* y) {
  const int64_t half = d / 2;
  const float *first = x, *second = x + half, *cosine = table, *sine = table + half;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(first + i), b = load(second + i), c = load(cosine + i) * scale;
    const Vec s = load(sine + i) * (sign * scale);
    store(y + i, a * c - b * s);
    store(y + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float c = cosine[i] * scale, s = sine[i] * sign * scale, a = first[i], b = second[i];
    from_float(y + i, a * c - b * s);
    from_float(y + half + i, b * c + a * s);
  }
}

template <class T>
void rotate(const float* x, const float* table, float scale, int64_t d, T* y) {
  turn(x, table, scale, 1.0f, d, y);
}

void rotate_back(const float* x, const float* table, float scale, int64_t d, float* y) {
  turn(x, table, scale, -1.0f, d, y);
}

constexpr float kHidden = -1e30f;

template <class T>
void softmax(float* row, Span span, const uint8_t* visible, int64_t first, int64_t width, T* rounded) {
  if (span.begin == span.end) {  // no key: all scores are equally hidden, hence equal
    const float each = 1.0f / static_cast<float>(width);
    for (int64_t i = 0; i < width; ++i) row[i] = each;
    for (int64_t i = 0; i < width; ++i) from_float(rounded + i, each);
    return;
  }
  const int64_t begin = span.begin - first, end = span.end - first;
  if (!span.solid) {
    for (int64_t i = begin; i < end; ++i) row[i] = visible[first + i] ? row[i] : kHidden;
  }
  Vec top = splat(kHidden);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) top = maximum(top, load(row + i));
  if (i < end) top = maximum(top, load_some(row + i, end - i, kHidden));
  const float most = highest(top);
  Vec total = splat(0.0f);
  for (i = begin; i + kLanes <= end; i += kLanes) {
    const Vec e = exponential(load(row + i) - most);
    total += e;
    store(row + i, e);
  }
  if (i < end) {
    const Vec e = exponential(load_some(row + i, end - i, kHidden) - most);
    store_some(row + i, e, end - i);
    for (int64_t j = 0; j < end - i; ++j) total[j] += e[j];
  }
  const float scale = 1.0f / sum(total);
  for (i = 0; i < begin; ++i) row[i] = 0.0f;
  for (i = end; i < width; ++i) row[i] = 0.0f;
  for (i = begin; i < end; ++i) row[i] *= scale;
  if (!span.solid) {
    for (i = begin; i < end; ++i) row[i] = visible[first + i] ? row[i] : 0.0f;
  }
  if (static_cast<const void*>(rounded) == static_cast<const void*>(row) && sizeof(T) == sizeof(float)) return;
  for (i = 0; i + kLanes <= width; i += kLanes) store(rounded + i, load(row + i));
  for (; i < width; ++i) from_float(rounded + i, row[i]);
}

template <class T>
void score_gradient(const float* p, const float* dp, int64_t width, T* ds) {
  const float inner = dot(p, dp, width);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(ds + i, load(p + i) * (load(dp + i) - inner));
  for (; i < width; ++i) from_float(ds + i, p[i] * (dp[i] - inner));
}

template <class T>
void round_all(const float* x, int64_t n, T* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i));
  for (; i < n; ++i) from_float(y + i, x[i]);
}

}  // namespace

const AttentionTable& attention_kernels() {
  static constexpr AttentionTable table{
      {rotate<float>, rotate_back, softmax<float>, score_gradient<float>, round_all<float>},
      {rotate<uint16_t>, rotate_back, softmax<uint16_t>, score_gradient<uint16_t>, round_all<uint16_t>}};
  return table;
}

}  // namespace MF_ISA
}  // namespace mf

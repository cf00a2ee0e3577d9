// SPDX-License-Identifier: Apache-2.0
// Attention of one position over a cache, and quantization of rows. Compiled once per variant.
#include "decode.h"
#include "simd.h"

namespace mf {
namespace MF_ISA {

const ProductKernels& product_kernels();

namespace {

// p[t] = e^(p[t] - max); returns the sum.
float exponentials(float* p, int64_t n) {
  Vec best = splat(p[0]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) best = maximum(best, load(p + i));
  if (i < n) best = maximum(best, load_some(p + i, n - i, p[0]));
  const float top = highest(best);
  Vec total = splat(0.0f);
  for (i = 0; i + kLanes <= n; i += kLanes) {
    const Vec e = exponential(load(p + i) - top);
    store(p + i, e);
    total += e;
  }
  float rest = sum(total);
  if (i < n) {
    const Vec e = exponential(load_some(p + i, n - i, top) - top);
    store_some(p + i, e, n - i);
    for (int64_t j = i; j < n; ++j) rest += p[j];
  }
  return rest;
}

// out[h][i] for V vectors of columns from `column` on and H heads: sum_t p[h][t] v[t][i] / total[h].
template <class T, int H, int V>
void mix(const float* p, const float* total, const T* values, int64_t length, int64_t d, int64_t column, float* out) {
  Vec acc[H][V];
#pragma GCC unroll 4
  for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[h][v] = splat(0.0f);
  }
  for (int64_t t = 0; t < length; ++t) {
    Vec row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(values + t * d + column + v * kLanes);
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      const float weight = p[h * length + t];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[h][v] += weight * row[v];
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + h * d + column + v * kLanes, acc[h][v] / total[h]);
  }
}

template <class T, int H>
void mix_heads(const float* p, const float* total, const T* values, int64_t length, int64_t d, float* out) {
  constexpr int kVectors = kVectorBytes == 64 ? 4 : 2;  // accumulators that fit into the registers
  int64_t column = 0;
  for (; column + kVectors * kLanes <= d; column += kVectors * kLanes) {
    mix<T, H, kVectors>(p, total, values, length, d, column, out);
  }
  for (; column + kLanes <= d; column += kLanes) mix<T, H, 1>(p, total, values, length, d, column, out);
  for (; column < d; ++column) {
    for (int h = 0; h < H; ++h) {
      float acc = 0.0f;
      for (int64_t t = 0; t < length; ++t) acc += p[h * length + t] * to_float(values[t * d + column]);
      out[h * d + column] = acc / total[h];
    }
  }
}

template <class T>
void attend_as(const Attention& a) {
  Weight keys;
  keys.data = a.keys;
  keys.rows = a.length;
  keys.cols = a.d;
  keys.format = a.format;
  product_kernels().product(keys, a.q, a.heads, 0, a.length, a.scores, a.length, false);
  const T* values = static_cast<const T*>(a.values);
  for (int64_t head = 0; head < a.heads;) {
    float* p = a.scores + head * a.length;
    float* out = a.out + head * a.d;
    float total[4];
    const int64_t left = a.heads - head;
    const int64_t taken = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    for (int64_t h = 0; h < taken; ++h) total[h] = exponentials(p + h * a.length, a.length);
    if (taken == 4) {
      mix_heads<T, 4>(p, total, values, a.length, a.d, out);
    } else if (taken == 2) {
      mix_heads<T, 2>(p, total, values, a.length, a.d, out);
    } else {
      mix_heads<T, 1>(p, total, values, a.length, a.d, out);
    }
    head += taken;
  }
}

void attend(const Attention& a) {
  if (a.format == WeightFormat::kBFloat16) {
    attend_as<uint16_t>(a);
  } else {
    attend_as<float>(a);
  }
}

template <class T>
void widen_as(const T* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) store_some(to + i, load_some(from + i, n - i), n - i);
}

void widen(const void* from, WeightFormat format, float* to, int64_t n) {
  if (format == WeightFormat::kBFloat16) {
    widen_as(static_cast<const uint16_t*>(from), to, n);
  } else {
    widen_as(static_cast<const float*>(from), to, n);
  }
}

int64_t first_highest(const float* x, int64_t n) {
  Vec best = splat(x[0]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) best = maximum(best, load(x + i));
  if (i < n) best = maximum(best, load_some(x + i, n - i, x[0]));
  const float top = highest(best);
  for (i = 0; i < n; ++i) {
    if (x[i] == top) return i;
  }
  return 0;  // not-a-numbers only
}

template <class T>
float quantize_as(const T* x, int64_t n, int8_t* q) {
  Vec best = splat(0.0f);
  Vec sick = splat(0.0f);  // x - x is 0 for every finite number, else not a number
  int64_t i = 0;
  for (; i < n; i += kLanes) {
    const Vec v = i + kLanes <= n ? load(x + i) : load_some(x + i, n - i);
    best = maximum(best, maximum(v, -v));
    sick += v - v;
  }
  const float scale = highest(best) / 127.0f + sum(sick);
  const bool finite = scale - scale == 0.0f;
  if (!finite || scale < 1e-30f) {  // below, 1 / scale would not be finite
    std::memset(q, 0, static_cast<size_t>(n));
    return finite ? 0.0f : scale;
  }
  const float inverse = 1.0f / scale;
  for (i = 0; i < n; ++i) q[i] = static_cast<int8_t>(__builtin_rintf(to_float(x[i]) * inverse));
  return scale;
}

float quantize_row(const void* x, WeightFormat format, int64_t n, int8_t* q) {
  if (format == WeightFormat::kBFloat16) return quantize_as(static_cast<const uint16_t*>(x), n, q);
  return quantize_as(static_cast<const float*>(x), n, q);
}

}  // namespace

const DecodeKernels& decode_kernels() {
  static constexpr DecodeKernels table{attend, widen, first_highest, quantize_row};
  return table;
}

}  // namespace MF_ISA
}  // namespace mf

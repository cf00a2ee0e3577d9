// SPDX-License-Identifier: Apache-2.0
// Blocks of R rows times C weight rows, kept in registers. Compiled once per variant.
#include "product.h"
#include "simd.h"

// One vector from chosen lanes of two.
#if defined(__clang__)
#define MF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (IVec){__VA_ARGS__})
#endif

namespace mf {
namespace MF_ISA {
namespace {

// Sums of neighbouring lanes: those of a in the lower half, those of b in the upper.
inline Vec fold(Vec a, Vec b) {
#if defined(__AVX512F__)
  return MF_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         MF_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX2__)
  return MF_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14) + MF_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return MF_SHUFFLE(a, b, 0, 2, 4, 6) + MF_SHUFFLE(a, b, 1, 3, 5, 7);
#endif
}

template <int N>
inline Vec fold_all(const Vec* v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    return fold(fold_all<N / 2>(v), fold_all<N / 2>(v + N / 2));
  }
}

// The sums over the lanes of N vectors.
template <int N>
inline void lane_sums(const Vec* v, float* out) {
  if constexpr (N == 0) {
    return;
  } else {
    constexpr int kTake = N >= kLanes ? kLanes : N >= 8 ? 8 : N >= 4 ? 4 : N >= 2 ? 2 : 1;
    Vec folded = fold_all<kTake>(v);
    for (int width = kLanes; width > kTake; width /= 2) folded = fold(folded, folded);
    for (int i = 0; i < kTake; ++i) out[i] = folded[i];
    lane_sums<N - kTake>(v + kTake, out + kTake);
  }
}

constexpr int kLine = 64;  // bytes of a cache line

// A turn takes a cache line of each of C weight rows, and asks for the line that the next C rows have at this place:
// the processor's own prefetching ends with every row and cannot keep up with blocks of several rows of x. Sums are
// kept A times where they would wait for each other. Takes `depth` columns of rows that are k long.
template <class T, int R, int C, int A>
inline void block(const T* w, const float* x, int64_t k, int64_t depth, float* out) {
  constexpr int kSteps = kLine / static_cast<int>(sizeof(T)) / kLanes;
  Vec total[A][R * C];
#pragma GCC unroll 2
  for (int a = 0; a < A; ++a) {
#pragma GCC unroll 32
    for (int i = 0; i < R * C; ++i) total[a][i] = splat(0.0f);
  }
  int64_t j = 0;
  for (; j + kSteps * kLanes <= depth; j += kSteps * kLanes) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) __builtin_prefetch(w + (C + c) * k + j, 0, 2);
#pragma GCC unroll 16
    for (int u = 0; u < kSteps; ++u) {
      Vec wide[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) wide[c] = load(w + c * k + j + u * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec xr = load(x + r * k + j + u * kLanes);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) total[u % A][r * C + c] += xr * wide[c];
      }
    }
  }
  for (; j + kLanes <= depth; j += kLanes) {  // the end of the rows
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec xr = load(x + r * k + j);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) total[0][r * C + c] += xr * load(w + c * k + j);
    }
  }
  if (j < depth) {
    const int64_t left = depth - j;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec xr = load_some(x + r * k + j, left);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) total[0][r * C + c] += xr * load_some(w + c * k + j, left);
    }
  }
#pragma GCC unroll 2
  for (int a = 1; a < A; ++a) {
#pragma GCC unroll 32
    for (int i = 0; i < R * C; ++i) total[0][i] += total[a][i];
  }
  lane_sums<R * C>(total[0], out);
}

struct Target {
  const float* scale;
  float* y;
  int64_t stride;
  bool add;
};

// R rows times weight rows [begin, end), C at a time, of columns [0, depth).
template <class T, int R, int C, int A>
void strip(const T* w, const float* x, int64_t k, int64_t depth, int64_t begin, int64_t end, const Target& target) {
  float out[R * C];
  int64_t n = begin;
  const auto put = [&](int width) {
    for (int r = 0; r < R; ++r) {
      float* y = target.y + r * target.stride + n;
      for (int c = 0; c < width; ++c) {
        const float value = target.scale == nullptr ? out[r * width + c] : out[r * width + c] * target.scale[n + c];
        y[c] = target.add ? y[c] + value : value;
      }
    }
  };
  for (; n + C <= end; n += C) {
    block<T, R, C, A>(w + n * k, x, k, depth, out);
    put(C);
  }
  for (; n < end; ++n) {
    block<T, R, 1, 1>(w + n * k, x, k, depth, out);
    put(1);
  }
}

// R rows, as many columns at a time as stay in the first-level cache.
template <class T, int R, int C, int A>
void panels(const T* w, const float* x, int64_t k, int64_t begin, int64_t end, Target target) {
  constexpr int64_t kDepth = 32 * 1024 / sizeof(float) / R;
  for (int64_t j = 0; j < k; j += kDepth) {
    strip<T, R, C, A>(w + j, x + j, k, k - j < kDepth ? k - j : kDepth, begin, end, target);
    target.add = true;
  }
}

template <class T>
void all_rows(const Weight& weight, const float* x, int64_t count, int64_t begin, int64_t end, Target target) {
  const T* w = static_cast<const T*>(weight.data);
  const int64_t k = weight.cols;
  while (count > 0) {
    int64_t taken;
    if (count >= 4) {
      panels<T, 4, kVectorBytes == 64 ? 6 : 2, 1>(w, x, k, begin, end, target);
      taken = 4;
    } else if (count >= 2) {
      panels<T, 2, 4, 1>(w, x, k, begin, end, target);
      taken = 2;
    } else {
      panels<T, 1, 4, sizeof(T) == 4 ? 1 : 2>(w, x, k, begin, end, target);
      taken = 1;
    }
    count -= taken;
    x += taken * k;
    target.y += taken * target.stride;
  }
}

void product(const Weight& weight, const float* x, int64_t count, int64_t begin, int64_t end, float* y,
             int64_t y_stride, bool add) {
  const Target target{weight.scale, y, y_stride, add};
  switch (weight.format) {
    case WeightFormat::kFloat32:
      return all_rows<float>(weight, x, count, begin, end, target);
    case WeightFormat::kBFloat16:
      return all_rows<uint16_t>(weight, x, count, begin, end, target);
    case WeightFormat::kInt8:
      return all_rows<int8_t>(weight, x, count, begin, end, target);
  }
}

}  // namespace

const ProductKernels& product_kernels() {
  static constexpr ProductKernels table{product};
  return table;
}

}  // namespace MF_ISA
}  // namespace mf

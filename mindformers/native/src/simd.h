// SPDX-License-Identifier: Apache-2.0
// Vectors of floats as wide as the variant being compiled, by GCC's and Clang's vector extensions: one source for
// SSE2, AVX2, AVX-512 and NEON. Include in *_isa.cc files only.
//
// Everything lives in the variant's namespace. *_isa.cc files include no C++ standard containers or algorithms: the
// linker keeps one copy of an inline function of the standard library, which may be one with instructions that an
// older CPU lacks.
#ifndef MINDFORMERS_NATIVE_SIMD_H_
#define MINDFORMERS_NATIVE_SIMD_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef MF_ISA
#error "simd.h belongs in files compiled once per variant (*_isa.cc)"
#endif

namespace mf {
namespace MF_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

typedef float Vec __attribute__((vector_size(kVectorBytes)));
typedef int32_t IVec __attribute__((vector_size(kVectorBytes)));
typedef uint32_t UVec __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HVec __attribute__((vector_size(kVectorBytes / 2)));
typedef int8_t BVec __attribute__((vector_size(kVectorBytes / 4)));

inline Vec splat(float x) { return Vec{} + x; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// bfloat16 keeps the upper 16 bits of a float. Intrinsics: GCC 12 converts vectors of short elements in pieces.
inline Vec load(const uint16_t* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_slli_epi32(-1, _mm512_maskz_cvtepu16_epi32(-1, _mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  HVec h;
  std::memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, UVec) << 16);
#endif
}
inline Vec load(const int8_t* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtepi32_ps(-1, _mm512_maskz_cvtepi8_epi32(-1, _mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  BVec b;
  std::memcpy(&b, p, sizeof b);
  return __builtin_convertvector(__builtin_convertvector(b, IVec), Vec);
#endif
}

// Round to nearest even; a NaN stays a NaN.
inline void store(uint16_t* p, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &h, sizeof h);
#else
  const UVec bits = (UVec)v;
  const UVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UVec quiet = (bits >> 16) | 0x40u;
  const HVec h = __builtin_convertvector(v == v ? rounded : quiet, HVec);
  std::memcpy(p, &h, sizeof h);
#endif
}

inline float to_float(float x) { return x; }
inline float to_float(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}
inline float to_float(int8_t x) { return x; }
inline void from_float(float* p, float x) { *p = x; }
inline void from_float(uint16_t* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  *p = static_cast<uint16_t>(x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : (bits >> 16) | 0x40u);
}

// The first n < kLanes elements; missing ones read as `fill`.
template <class T>
inline Vec load_some(const T* p, int64_t n, float fill = 0.0f) {
  float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = i < n ? to_float(p[i]) : fill;
  return load(buffer);
}
template <class T>
inline void store_some(T* p, Vec v, int64_t n) {
  for (int i = 0; i < n; ++i) from_float(p + i, v[i]);
}

inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

inline float sum(Vec v) {
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}
inline float highest(Vec v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// e^x with relative error below 2e-7 for x in [-87, 88]; smaller x give e^-87, larger ones e^88, NaN gives NaN.
// Cody and Waite's reduction x = n ln2 + r, then the Taylor polynomial of degree 6 on |r| <= ln2 / 2.
inline Vec exponential(Vec x) {
  x = x < -87.0f ? splat(-87.0f) : x;
  x = x > 88.0f ? splat(88.0f) : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec n = (x * 1.44269504f + shift) - shift;
  Vec r = x - n * 0.693145752f;  // upper part of ln 2, exact when multiplied by n
  r = r - n * 1.42860677e-6f;    // the rest of it
  Vec p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IVec power = (__builtin_convertvector(n, IVec) + 127) << 23;
  return p * (Vec)power;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

template <class A, class B>
inline float dot(const A* a, const B* b, int64_t n) {
  Vec total0 = splat(0), total1 = splat(0);
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    total0 += load(a + i) * load(b + i);
    total1 += load(a + i + kLanes) * load(b + i + kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) total0 += load(a + i) * load(b + i);
  float rest = sum(total0 + total1);
  for (; i < n; ++i) rest += to_float(a[i]) * to_float(b[i]);
  return rest;
}

}  // namespace MF_ISA
}  // namespace mf

#endif  // MINDFORMERS_NATIVE_SIMD_H_

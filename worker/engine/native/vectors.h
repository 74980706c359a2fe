// Sixteen numbers at a time, in the compiler's own vector types: one register with AVX-512, two or four elsewhere.
// What is summed is summed in an order that the source fixes, and rounded where the source says (`fma`; the compiler is
// told to join nothing itself), so that a row's result depends on that row alone.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace endstop {

constexpr int64_t kLanes = 16;

using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));

constexpr Ints kOrder = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

inline int64_t padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

inline Floats load(const float* from) {
  Floats out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline Floats load(const c10::BFloat16* from) {
  using Narrow = uint16_t __attribute__((vector_size(32)));
  using Wide = uint32_t __attribute__((vector_size(64)));
  Narrow bits;
  std::memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Wide) << 16);
}

inline Floats load(const c10::Half* from) {
#if defined(__AVX512F__)  // of which the compiler makes single loads
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__FLT16_MAX__)
  using Narrow = _Float16 __attribute__((vector_size(32)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof narrow);
  return __builtin_convertvector(narrow, Floats);
#else
  Floats out;
  for (int i = 0; i < kLanes; i++) out[i] = static_cast<float>(from[i]);
  return out;
#endif
}

inline Floats load(const int8_t* from) {
  using Narrow = int8_t __attribute__((vector_size(16)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof narrow);
#ifdef __AVX512F__  // here too
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)narrow));
#else
  return __builtin_convertvector(__builtin_convertvector(narrow, Ints), Floats);
#endif
}

// The last `count` of a row, and zeros behind them.
template <typename T>
inline Floats load(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  T whole[kLanes] = {};
  std::memcpy(whole, from, count * sizeof(T));
  return load(whole);
}

inline Floats splat(float number) {
#ifdef __AVX512F__
  return (Floats)_mm512_set1_ps(number);
#else
  Floats out;
  for (int i = 0; i < kLanes; i++) out[i] = number;
  return out;
#endif
}

// a * b + c, rounded once.
inline Floats fma(Floats a, Floats b, Floats c) {
#ifdef __AVX512F__
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  Floats out;
  for (int i = 0; i < kLanes; i++) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#endif
}

inline void store(float* to, Floats from) { std::memcpy(to, &from, sizeof from); }

inline float sum(Floats v) {
  const auto eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  const auto two = four + __builtin_shufflevector(four, four, 2, 3, 2, 3);
  return two[0] + two[1];
}

inline float max(Floats v) {
  const auto larger = [](auto a, auto b) { return a > b ? a : b; };
  const auto eight = larger(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                            __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  const auto four = larger(__builtin_shufflevector(eight, eight, 0, 1, 2, 3),
                           __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
  const auto two = larger(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  return two[0] > two[1] ? two[0] : two[1];
}

// e to the power of numbers of at most 0, within 2 units in the last place; below -87 it stays e^-87. The polynomial is
// that of expf in Cephes.
inline Floats exp_of_negative(Floats x) {
  x = x < -87.0f ? splat(-87.0f) : x;
  const Floats shifted = fma(x, splat(1.44269504088896341f), splat(12582912.0f));  // 1.5 * 2^23: rounds to a whole number
  const Floats whole = shifted - 12582912.0f;
  x = fma(whole, splat(2.12194440e-4f), fma(whole, splat(-0.693359375f), x));
  Floats y = fma(x, splat(1.9875691500e-4f), splat(1.3981999507e-3f));
  y = fma(y, x, splat(8.3334519073e-3f));
  y = fma(y, x, splat(4.1665795894e-2f));
  y = fma(y, x, splat(1.6666665459e-1f));
  y = fma(y, x, splat(5.0000001201e-1f));
  y = fma(y, x * x, x) + 1.0f;
  const Ints exponent = __builtin_convertvector(whole, Ints) + 127;
  return y * reinterpret_cast<Floats>(exponent << 23);
}

}  // namespace endstop

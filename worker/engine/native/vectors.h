// Sixteen numbers at a time: one register with AVX-512, two of the compiler's vectors elsewhere.
// What is summed is summed in an order that the source fixes, and rounded where the source says (`fma`; the compiler is
// told to join nothing itself), so that a row's result depends on that row alone.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace endstop {

constexpr int64_t kLanes = 16;

#if defined(__AVX512F__)
constexpr bool kHasManyRegisters = true;

using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));

inline Floats select(Ints mask, Floats a, Floats b) { return mask ? a : b; }
inline Ints to_ints(Floats from) { return __builtin_convertvector(from, Ints); }
inline Floats as_floats(Ints bits) { return reinterpret_cast<Floats>(bits); }
inline Floats fma(Floats a, Floats b, Floats c) {  // a * b + c, rounded once
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#else
constexpr bool kHasManyRegisters = false;

using EightFloats = float __attribute__((vector_size(32)));
using EightInts = int32_t __attribute__((vector_size(32)));

template <typename T, typename H>
struct Pair {
  using Half = H;
  Half low, high;

#define ENDSTOP_OPERATOR(sign)                                                                        \
  friend inline Pair operator sign(Pair a, Pair b) { return {a.low sign b.low, a.high sign b.high}; } \
  friend inline Pair operator sign(Pair a, T b) { return {a.low sign b, a.high sign b}; }
  ENDSTOP_OPERATOR(+)
  ENDSTOP_OPERATOR(-)
  ENDSTOP_OPERATOR(*)
#undef ENDSTOP_OPERATOR
#define ENDSTOP_COMPARISON(sign)                                        \
  friend inline Pair<int32_t, EightInts> operator sign(Pair a, T b) {   \
    return {(EightInts)(a.low sign b), (EightInts)(a.high sign b)};     \
  }
  ENDSTOP_COMPARISON(<)
  ENDSTOP_COMPARISON(<=)
  ENDSTOP_COMPARISON(>)
#undef ENDSTOP_COMPARISON
};

using Floats = Pair<float, EightFloats>;
using Ints = Pair<int32_t, EightInts>;

inline Ints operator&(Ints a, Ints b) { return {a.low & b.low, a.high & b.high}; }
inline Ints operator<<(Ints a, int by) { return {a.low << by, a.high << by}; }
inline Floats select(Ints mask, Floats a, Floats b) {
  return {mask.low ? a.low : b.low, mask.high ? a.high : b.high};
}
inline Ints to_ints(Floats from) {
  return {__builtin_convertvector(from.low, EightInts), __builtin_convertvector(from.high, EightInts)};
}
inline Floats as_floats(Ints bits) { return {(EightFloats)bits.low, (EightFloats)bits.high}; }
inline EightFloats fma(EightFloats a, EightFloats b, EightFloats c) {
#if defined(__AVX2__) && defined(__FMA__)
  return (EightFloats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  EightFloats out;
  for (int i = 0; i < kLanes / 2; i++) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#else
  return a * b + c;  // rounded twice: there is no instruction that rounds once
#endif
}
inline Floats fma(Floats a, Floats b, Floats c) { return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)}; }
#endif

inline int64_t padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

// Copies to and from memory. A pair goes half by half: the compiler would take the way over the stack.
inline Floats load(const float* from) {
  Floats out;
#if defined(__AVX512F__)
  std::memcpy(&out, from, sizeof out);
#else
  std::memcpy(&out.low, from, sizeof out.low);
  std::memcpy(&out.high, from + kLanes / 2, sizeof out.high);
#endif
  return out;
}

inline void store(float* to, Floats from) {
#if defined(__AVX512F__)
  std::memcpy(to, &from, sizeof from);
#else
  std::memcpy(to, &from.low, sizeof from.low);
  std::memcpy(to + kLanes / 2, &from.high, sizeof from.high);
#endif
}

inline Floats splat(float number) {
#if defined(__AVX512F__)
  return (Floats)_mm512_set1_ps(number);
#else
  const EightFloats half = {number, number, number, number, number, number, number, number};
  return {half, half};
#endif
}

// For CPUs that have no instruction for it.
template <typename T>
inline Floats load_each(const T* from) {
  float wide[kLanes];
  for (int i = 0; i < kLanes; i++) wide[i] = static_cast<float>(from[i]);
  return load(wide);
}

inline Floats load(const c10::BFloat16* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
  const auto half = [](const c10::BFloat16* from) {
    return (EightFloats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
  };
  return {half(from), half(from + kLanes / 2)};
#else
  return load_each(from);
#endif
}

inline Floats load(const c10::Half* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
  const auto half = [](const c10::Half* from) {
    return (EightFloats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
  };
  return {half(from), half(from + kLanes / 2)};
#else
  return load_each(from);
#endif
}

inline Floats load(const int8_t* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
  const auto half = [](const int8_t* from) {
    return (EightFloats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
  };
  return {half(from), half(from + kLanes / 2)};
#else
  return load_each(from);
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

// 0, 1, 2 ... 15.
inline Ints order() {
  const int32_t numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Ints out;
  std::memcpy(&out, numbers, sizeof out);
  return out;
}

// All of them, joined by `join`: first the one half with the other, and so on.
template <typename Join>
inline float fold(Floats v, Join join) {
  using Eight = float __attribute__((vector_size(32)));
  using Four = float __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  const Eight eight = join(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
#else
  const Eight eight = join(v.low, v.high);
#endif
  const Four four = join(__builtin_shufflevector(eight, eight, 0, 1, 2, 3),
                         __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
  const Four two = join(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  return join(two[0], two[1]);
}

inline float sum(Floats v) {
  return fold(v, [](auto a, auto b) { return a + b; });
}

inline float max(Floats v) {
  return fold(v, [](auto a, auto b) { return a > b ? a : b; });
}

// e to the power of numbers of at most 0, within 2 units in the last place; below -87 it stays e^-87. The polynomial is
// that of expf in Cephes.
inline Floats exp_of_negative(Floats x) {
  x = select(x < -87.0f, splat(-87.0f), x);
  const Floats shifted = fma(x, splat(1.44269504088896341f), splat(12582912.0f));  // 1.5 * 2^23: rounds to a whole number
  const Floats whole = shifted - 12582912.0f;
  x = fma(whole, splat(2.12194440e-4f), fma(whole, splat(-0.693359375f), x));
  Floats y = fma(x, splat(1.9875691500e-4f), splat(1.3981999507e-3f));
  y = fma(y, x, splat(8.3334519073e-3f));
  y = fma(y, x, splat(4.1665795894e-2f));
  y = fma(y, x, splat(1.6666665459e-1f));
  y = fma(y, x, splat(5.0000001201e-1f));
  y = fma(y, x * x, x) + 1.0f;
  return y * as_floats((to_ints(whole) + 127) << 23);
}

}  // namespace endstop

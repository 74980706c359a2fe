// y = x W^T + b for a few rows of x, on a CPU: what a decode step does most of the time.
//
// Why it is native: with few rows the time is that of reading the weights, and torch's own reads them at half the speed
// that one core can. Weights are read where they are, in the layout of the checkpoint, and only once; the next ones are
// asked for while these are multiplied.
//
// A row's result depends on that row alone, to the bit: the sum over k is split over the lanes of one vector and those
// are added up in a fixed order, for one row and for many, whatever the number of threads.

#include "parallel.h"
#include "vectors.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
#define ENDSTOP_HAS_PAIRS 1
#include <immintrin.h>
#else
#define ENDSTOP_HAS_PAIRS 0
#endif

namespace {

using namespace endstop;
using at::BFloat16;
using at::Half;

constexpr int kOutputs = 4;           // that a tile computes together
constexpr int64_t kPanel = 32;        // outputs that one thread computes for all rows, before it takes the next ones
constexpr int64_t kLineBytes = 64;    // of the cache
constexpr int64_t kAheadBytes = 4608;  // of the weights, that are asked for before they are multiplied; measured
constexpr int64_t kRowsInCache = 48;  // rows of x that are multiplied with a panel while they are in the L2 cache
constexpr int64_t kFewRows = kHasManyRegisters ? 128 : 4;

// How products are summed: in float32, sixteen at a time. For every type of weight.
struct Singles {
  using Input = float;
  static constexpr int64_t kStep = kLanes;

  template <int rows, typename W>
  static inline void add(Floats (&sums)[rows][kOutputs], const float* x, int64_t x_stride, const W* w,
                         int64_t w_stride) {
    Floats weights[kOutputs];
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; n++) weights[n] = load(w + n * w_stride);
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
      const Floats xs = load(x + m * x_stride);
#pragma GCC unroll 8
      for (int n = 0; n < kOutputs; n++) sums[m][n] = fma(xs, weights[n], sums[m][n]);
    }
  }
};

#if ENDSTOP_HAS_PAIRS
// Two products of bfloat16 in each lane, by one instruction.
struct Pairs {
  using Input = BFloat16;
  static constexpr int64_t kStep = 2 * kLanes;

  template <int rows>
  static inline void add(Floats (&sums)[rows][kOutputs], const BFloat16* x, int64_t x_stride, const BFloat16* w,
                         int64_t w_stride) {
    __m512bh weights[kOutputs];
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; n++) weights[n] = (__m512bh)_mm512_loadu_si512(w + n * w_stride);
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
      const __m512bh xs = (__m512bh)_mm512_loadu_si512(x + m * x_stride);
#pragma GCC unroll 8
      for (int n = 0; n < kOutputs; n++) sums[m][n] = (Floats)_mm512_dpbf16_ps((__m512)sums[m][n], xs, weights[n]);
    }
  }
};

// Every int8 is a bfloat16.
inline void to_pairs(const int8_t* from, BFloat16* to) {
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + kLanes))));
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
#endif

// One product of `rows` rows and kOutputs outputs. The last step of k, if it is not whole, comes padded with zeros.
template <typename Kernel, int rows, typename W>
inline void tile(const typename Kernel::Input* x, int64_t x_stride, const W* w, int64_t k_size, const W* tail,
                 float* out) {
  // In the order of the memory, in which rows lie one behind the other: to ask for the rows of the next tile side by side
  // was half as fast on a busy memory.
  constexpr int kLines = std::max<int>(1, kOutputs * Kernel::kStep * sizeof(W) / kLineBytes);
  Floats sums[rows][kOutputs] = {};
  const int64_t whole = k_size / Kernel::kStep * Kernel::kStep;
  for (int64_t k = 0; k < whole; k += Kernel::kStep) {
    const char* ahead = reinterpret_cast<const char*>(w + kOutputs * k) + kAheadBytes;
#pragma GCC unroll 8
    for (int line = 0; line < kLines; line++) __builtin_prefetch(ahead + kLineBytes * line);
    Kernel::template add<rows>(sums, x + k, x_stride, w + k, k_size);
  }
  if (whole < k_size) Kernel::template add<rows>(sums, x + whole, x_stride, tail, Kernel::kStep);
#pragma GCC unroll 8
  for (int m = 0; m < rows; m++) {
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; n++) out[m * kPanel + n] = sum(sums[m][n]);
  }
}

template <typename Kernel, typename W>
void tiles(const typename Kernel::Input* x, int64_t num_rows, int64_t x_stride, const W* w, int64_t k_size,
           const W* tail, float* out) {
  int64_t m = 0;
  const auto run = [&](auto rows) {
    tile<Kernel, decltype(rows)::value>(x + m * x_stride, x_stride, w, k_size, tail, out + m * kPanel);
    m += decltype(rows)::value;
  };
  if constexpr (kHasManyRegisters) {
    while (num_rows - m >= 6) run(std::integral_constant<int, 6>{});
    if (num_rows - m >= 4) run(std::integral_constant<int, 4>{});
    if (num_rows - m >= 2) run(std::integral_constant<int, 2>{});
  }
  while (num_rows - m >= 1) run(std::integral_constant<int, 1>{});
}

inline void narrow(const float* from, float* to, int64_t size) { std::copy_n(from, size, to); }

inline void narrow(const float* from, BFloat16* to, int64_t size) {  // to the nearest, a half to even
  uint16_t* bits = reinterpret_cast<uint16_t*>(to);
  for (int64_t i = 0; i < size; i++) {
    uint32_t wide;
    std::memcpy(&wide, &from[i], sizeof wide);
    const uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    bits[i] = static_cast<uint16_t>((wide & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
}

inline void narrow(const float* from, Half* to, int64_t size) {
#ifdef __FLT16_MAX__
  for (int64_t i = 0; i < size; i++) reinterpret_cast<_Float16*>(to)[i] = static_cast<_Float16>(from[i]);
#else
  for (int64_t i = 0; i < size; i++) to[i] = from[i];
#endif
}

// One of the matrices that x is multiplied with: w (num_outputs, k_size); scales and bias (num_outputs,) or null.
template <typename W, typename Out>
struct Matrix {
  const W* w;
  int64_t num_outputs;
  const float *scales, *bias;
  Out* out;  // (num_rows, num_outputs)
};

// Args: x (num_rows, x_stride), zeros behind the k_size.
template <typename Kernel, typename W, typename Out>
void multiply(const typename Kernel::Input* x, int64_t num_rows, int64_t x_stride, int64_t k_size,
              const std::vector<Matrix<W, Out>>& matrices) {
  constexpr bool is_widened = std::is_same_v<W, int8_t> && std::is_same_v<typename Kernel::Input, BFloat16>;
  using Weight = std::conditional_t<is_widened, BFloat16, W>;
  std::vector<std::pair<const Matrix<W, Out>*, int64_t>> panels;  // the matrix of each, and its first output there
  for (const auto& matrix : matrices) {
    for (int64_t first = 0; first < matrix.num_outputs; first += kPanel) panels.emplace_back(&matrix, first);
  }
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / (kPanel * k_size * num_rows));
  const int64_t whole = k_size / Kernel::kStep * Kernel::kStep;
  parallel(panels.size(), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(std::min(num_rows, kRowsInCache) * kPanel);
    std::vector<W> last;  // of the whole matrix, if its outputs are no multiple of kOutputs
    std::vector<Weight> tail(kOutputs * Kernel::kStep), widened(is_widened ? kOutputs * x_stride : 0);
    for (int64_t panel = begin; panel < end; panel++) {
      const auto& [matrix, first] = panels[panel];
      const auto& [w, num_outputs, scales, bias, out] = *matrix;
      const int64_t num = std::min(kPanel, num_outputs - first);
      for (int64_t m = 0; m < num_rows; m += kRowsInCache) {
        const int64_t count = std::min(kRowsInCache, num_rows - m);
        for (int64_t n = 0; n < num; n += kOutputs) {
          const W* weights = w + (first + n) * k_size;
          if (num - n < kOutputs) {
            last.assign(weights, weights + (num - n) * k_size);
            last.resize(kOutputs * k_size);
            weights = last.data();
          }
          float* to = sums.data() + n;
          if constexpr (is_widened) {
#if ENDSTOP_HAS_PAIRS
            // x_stride is k_size in whole steps, and so is a row of `widened`: it needs no tail.
            for (int o = 0; o < kOutputs; o++) {
              for (int64_t k = 0; k < whole; k += Kernel::kStep) {
                __builtin_prefetch(weights + (o + kOutputs) * k_size + k);
                to_pairs(weights + o * k_size + k, widened.data() + o * x_stride + k);
              }
              for (int64_t k = whole; k < k_size; k++) widened[o * x_stride + k] = weights[o * k_size + k];
            }
            tiles<Kernel>(x + m * x_stride, count, x_stride, widened.data(), x_stride, tail.data(), to);
#endif
          } else {
            for (int o = 0; o < kOutputs && whole < k_size; o++) {
              std::copy(weights + o * k_size + whole, weights + (o + 1) * k_size, tail.begin() + o * Kernel::kStep);
            }
            tiles<Kernel>(x + m * x_stride, count, x_stride, weights, k_size, tail.data(), to);
          }
        }
        for (int64_t r = 0; r < count; r++) {
          float* row = sums.data() + r * kPanel;
          for (int64_t n = 0; scales && n < num; n++) row[n] *= scales[first + n];
          for (int64_t n = 0; bias && n < num; n++) row[n] += bias[first + n];
          narrow(row, out + (m + r) * num_outputs + first, num);
        }
      }
    }
  });
}

// x as the kernel wants it: (num_rows, k_size), in its type, with zeros up to a whole step.
at::Tensor spread(const at::Tensor& x, at::ScalarType type, int64_t step) {
  const int64_t k_size = x.size(1), stride = (k_size + step - 1) / step * step;
  if (stride == k_size) return x.to(type).contiguous();
  at::Tensor out = at::zeros({x.size(0), stride}, x.options().dtype(type));
  out.narrow(1, 0, k_size).copy_(x);
  return out;
}

using Optionals = c10::List<std::optional<at::Tensor>>;

// In float32, for each of the outputs; undefined where there is none.
at::Tensor widened(const std::optional<at::Tensor>& numbers) {
  return numbers ? numbers->to(at::kFloat).contiguous() : at::Tensor();
}

template <typename Kernel, typename W, typename Out>
void call(const at::Tensor& x, at::TensorList weights, const Optionals& scales, const Optionals& biases,
          std::vector<at::Tensor>& outs) {
  using Input = typename Kernel::Input;
  const at::Tensor rows = spread(x, c10::CppTypeToScalarType<Input>::value, Kernel::kStep);
  std::vector<at::Tensor> wide;  // keeps them
  std::vector<Matrix<W, Out>> matrices;
  const auto numbers = [&](const std::optional<at::Tensor>& of) {
    return wide.emplace_back(widened(of)).defined() ? wide.back().const_data_ptr<float>() : nullptr;
  };
  for (size_t i = 0; i < weights.size(); i++) {
    matrices.push_back({weights[i].const_data_ptr<W>(), weights[i].size(0), numbers(scales[i]), numbers(biases[i]),
                        outs[i].mutable_data_ptr<Out>()});
  }
  multiply<Kernel>(rows.const_data_ptr<Input>(), rows.size(0), rows.size(1), x.size(1), matrices);
}

// Several matrices and the same x: one call, so that the threads meet once.
std::vector<at::Tensor> linears(const at::Tensor& x, at::TensorList weights, Optionals scales, Optionals biases,
                                bool is_exact) {
  TORCH_CHECK(!weights.empty() && weights.size() == scales.size() && weights.size() == biases.size());
  const at::ScalarType type = weights[0].scalar_type();
  const bool is_int8 = type == at::kChar;
  bool is_empty = x.numel() == 0;
  for (size_t i = 0; i < weights.size(); i++) {
    is_empty = is_empty || weights[i].numel() == 0;
    TORCH_CHECK(weights[i].scalar_type() == type && std::optional<at::Tensor>(scales[i]).has_value() == is_int8);
  }
  // With many rows the time is that of multiplying, and torch's own is faster: with AVX-512 in bfloat16 only.
  const bool is_many = x.numel() > kFewRows * x.size(-1);
  const bool is_torchs = is_many && !is_exact && (!kHasManyRegisters || type == at::kBFloat16);
  std::vector<at::Tensor> outs;
  for (size_t i = 0; i < weights.size() && (is_empty || is_torchs); i++) {
    at::Tensor weight = weights[i].to(x.scalar_type());
    if (is_int8) weight = weight * std::optional<at::Tensor>(scales[i])->to(x.scalar_type()).unsqueeze(1);
    outs.push_back(at::linear(x, weight, biases[i]));
  }
  if (!outs.empty()) return outs;
  TORCH_CHECK(is_int8 || type == x.scalar_type());
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  for (const at::Tensor& weight : weights) {
    TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && x.size(-1) == weight.size(1));
    outs.push_back(at::empty({rows.size(0), weight.size(0)}, x.options()));
  }
  switch (x.scalar_type()) {
    case at::kBFloat16: {
#if ENDSTOP_HAS_PAIRS
      using Kernel = Pairs;
#else
      using Kernel = Singles;
#endif
      if (is_int8) call<Kernel, int8_t, BFloat16>(rows, weights, scales, biases, outs);
      else call<Kernel, BFloat16, BFloat16>(rows, weights, scales, biases, outs);
      break;
    }
    case at::kHalf:
      if (is_int8) call<Singles, int8_t, Half>(rows, weights, scales, biases, outs);
      else call<Singles, Half, Half>(rows, weights, scales, biases, outs);
      break;
    default:
      TORCH_CHECK(x.scalar_type() == at::kFloat, "linear computes in float32, bfloat16 and float16");
      if (is_int8) call<Singles, int8_t, float>(rows, weights, scales, biases, outs);
      else call<Singles, float, float>(rows, weights, scales, biases, outs);
  }
  auto shape = x.sizes().vec();
  for (at::Tensor& out : outs) {
    shape.back() = out.size(1);
    out = out.reshape(shape);
  }
  return outs;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& scales,
                  const std::optional<at::Tensor>& bias, bool is_exact) {
  return linears(x, weight, Optionals({scales}), Optionals({bias}), is_exact)[0];
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(endstop, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? scales, Tensor? bias, bool is_exact) -> Tensor");
  m.def("linears(Tensor x, Tensor[] weights, Tensor?[] scales, Tensor?[] biases, bool is_exact) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(endstop, CPU, m) {
  m.impl("linear", linear);
  m.impl("linears", linears);
}

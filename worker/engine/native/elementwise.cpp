// What a decode step does between its matrix products, several of torch's operators in one call.
//
// Each gives to the bit what those operators give one after the other: every result is rounded to the type where theirs
// would be, and nothing is summed here.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

namespace {

using at::Tensor;

template <typename T>
inline float rounded(float number) {
  return static_cast<float>(static_cast<T>(number));
}

// x.float() ** 2
Tensor squares(const Tensor& x) {
  const Tensor from = x.contiguous();
  Tensor out = at::empty(from.sizes(), from.options().dtype(at::kFloat));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, from.scalar_type(), "squares", [&] {
    const scalar_t* in = from.const_data_ptr<scalar_t>();
    float* to = out.mutable_data_ptr<float>();
    for (int64_t i = 0, size = from.numel(); i < size; i++) {
      const float wide = static_cast<float>(in[i]);
      to[i] = wide * wide;
    }
  });
  return out;
}

// weight * (x.float() * (mean + epsilon).rsqrt()).to(x.dtype), for a mean of each row's squares.
Tensor scaled_by_rms(const Tensor& x, const Tensor& mean, const Tensor& epsilon, const Tensor& weight) {
  const Tensor from = x.contiguous(), means = mean.contiguous(), weights = weight.contiguous();
  const int64_t width = from.size(-1), num_rows = means.numel();
  TORCH_CHECK(num_rows * width == from.numel() && weights.numel() == width && weights.scalar_type() == x.scalar_type());
  Tensor out = at::empty(from.sizes(), from.options());
  const float eps = static_cast<float>(epsilon.item<double>());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, from.scalar_type(), "scaled_by_rms", [&] {
    const scalar_t* in = from.const_data_ptr<scalar_t>();
    const scalar_t* w = weights.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    for (int64_t row = 0; row < num_rows; row++, in += width, to += width) {
      const float factor = 1.0f / std::sqrt(means.const_data_ptr<float>()[row] + eps);
      for (int64_t i = 0; i < width; i++) {
        to[i] = static_cast<scalar_t>(static_cast<float>(w[i]) * rounded<scalar_t>(static_cast<float>(in[i]) * factor));
      }
    }
  });
  return out;
}

// x * cos + cat(-right half of x, left half of x) * sin
Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const int64_t num_heads = x.size(1), num_rows = x.size(2), width = x.size(3), half = width / 2;
  Tensor out = at::empty({1, num_rows, num_heads, width}, x.options()).transpose(1, 2);
  const Tensor cosines = cos.contiguous(), sines = sin.contiguous();
  TORCH_CHECK(x.size(0) == 1 && x.stride(3) == 1 && cosines.numel() == num_rows * width && sines.numel() == num_rows * width);
  TORCH_CHECK(width % 2 == 0 && cos.scalar_type() == x.scalar_type() && sin.scalar_type() == x.scalar_type());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "rotate", [&] {
    for (int64_t row = 0; row < num_rows; row++) {
      const scalar_t* c = cosines.const_data_ptr<scalar_t>() + row * width;
      const scalar_t* s = sines.const_data_ptr<scalar_t>() + row * width;
      for (int64_t head = 0; head < num_heads; head++) {
        const scalar_t* in = x.const_data_ptr<scalar_t>() + head * x.stride(1) + row * x.stride(2);
        scalar_t* to = out.mutable_data_ptr<scalar_t>() + (row * num_heads + head) * width;
        for (int64_t i = 0; i < half; i++) {
          const float left = static_cast<float>(in[i]), right = static_cast<float>(in[i + half]);
          to[i] = static_cast<scalar_t>(rounded<scalar_t>(left * static_cast<float>(c[i])) +
                                        rounded<scalar_t>(-right * static_cast<float>(s[i])));
          to[i + half] = static_cast<scalar_t>(rounded<scalar_t>(right * static_cast<float>(c[i + half])) +
                                               rounded<scalar_t>(left * static_cast<float>(s[i + half])));
        }
      }
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(endstop, m) {
  m.def("squares(Tensor x) -> Tensor");
  m.def("scaled_by_rms(Tensor x, Tensor mean, Tensor epsilon, Tensor weight) -> Tensor");
  m.def("rotate(Tensor x, Tensor cos, Tensor sin) -> Tensor");
}

TORCH_LIBRARY_IMPL(endstop, CPU, m) {
  m.impl("squares", squares);
  m.impl("scaled_by_rms", scaled_by_rms);
  m.impl("rotate", rotate);
}

// What the kernels of attention have in common.
#pragma once

#include "vectors.h"

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <optional>

namespace endstop {

constexpr int64_t kBlockTokens = 16;
static_assert(kBlockTokens == kLanes, "the scores of a block are one vector");
constexpr float kNone = -1e30f;  // less than any score, and their difference is a number

struct Shape {
  int64_t num_heads, num_kv_heads, group, head_dim, value_dim, max_blocks, window;
  float scale, softcap;
};

// Checks what the kernels take for granted. The errors are for who calls them, not for users.
inline Shape shape_of(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                      const at::Tensor& tables, double scale, int64_t window, double softcap) {
  Shape s;
  s.num_heads = query.size(1);
  s.num_kv_heads = keys.size(1);
  s.group = s.num_heads / s.num_kv_heads;
  s.head_dim = query.size(2);
  s.value_dim = values.size(2);
  s.max_blocks = tables.size(1);
  s.window = window;
  s.scale = static_cast<float>(scale);
  s.softcap = static_cast<float>(softcap);
  TORCH_CHECK(keys.is_contiguous() && values.is_contiguous() && tables.is_contiguous());
  TORCH_CHECK(tables.scalar_type() == at::kInt);
  TORCH_CHECK(keys.scalar_type() == values.scalar_type() && keys.size(2) == s.head_dim);
  return s;
}

// Calls `compute` with a value of the type of the cache.
template <typename F>
void with_type_of(const at::Tensor& cache, F&& compute) {
  if (cache.scalar_type() == at::kFloat) return compute(float{});
  if (cache.scalar_type() == at::kBFloat16) return compute(at::BFloat16{});
  TORCH_CHECK(cache.scalar_type() == at::kHalf, "attention computes in float32, bfloat16 and float16");
  compute(at::Half{});
}

// What a query has seen so far: its largest score and the sum of the weights relative to it.
struct Seen {
  float largest = kNone, total = 0.0f;

  // Takes the scores of a block, of which `is_there` says which count. Returns their weights, and what the weights
  // before have to shrink by. "Online normalizer calculation for softmax", arXiv:1805.02867.
  inline Floats weigh(Floats scores, Ints is_there, float softcap, float& shrink) {
    if (softcap) {
      float each[kLanes];
      store(each, scores);
      for (float& one : each) one = std::tanh(one / softcap) * softcap;
      scores = load(each);
    }
    const float peak = std::max(largest, max(select(is_there, scores, splat(kNone))));
    const Floats weights = select(is_there, exp_of_negative(scores - peak), splat(0.0f));
    shrink = peak == largest ? 1.0f : std::exp(largest - peak);
    largest = peak;
    total = total * shrink + sum(weights);
    return weights;
  }

  // What the weighted values have to be multiplied with in the end. A sink takes weight and has no value.
  inline float scale(const float* sink) const {
    if (!sink) return 1.0f / total;
    const float peak = std::max(largest, *sink), shrink = std::exp(largest - peak);
    return shrink / (total * shrink + std::exp(*sink - peak));
  }
};

}  // namespace endstop

// Attention of one new token of each sequence over its blocks in the KV cache, on a CPU.
//
// Why it is native: torch would have to copy the keys and values of all rows together, in every layer of every step, and
// pad them to the longest. The same in torch is worker/engine/kernels.py, which says what each argument is; the tests
// hold the two against each other.
//
// A row's result depends on that row alone, whoever its neighbours are and however many threads there are. Scores and
// sums are float32. One pass with a running maximum: "Online normalizer calculation for softmax", arXiv:1805.02867.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

namespace {

constexpr int64_t kBlockTokens = 16;
// Below this much work the threads would wait for each other longer than they work.
constexpr int64_t kWorkPerThread = 1 << 16;
constexpr float kNone = -1e30f;  // less than any score, and their difference is a number

inline void widen(const float* from, float* to, int64_t size) { std::memcpy(to, from, size * sizeof(float)); }

inline void widen(const at::BFloat16* from, float* to, int64_t size) {
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(from);
  for (int64_t i = 0; i < size; i++) {
    const uint32_t wide = static_cast<uint32_t>(bits[i]) << 16;
    std::memcpy(&to[i], &wide, sizeof(float));
  }
}

inline void widen(const at::Half* from, float* to, int64_t size) {
#ifdef __FLT16_MAX__
  const _Float16* narrow = reinterpret_cast<const _Float16*>(from);
  for (int64_t i = 0; i < size; i++) to[i] = static_cast<float>(narrow[i]);
#else
  for (int64_t i = 0; i < size; i++) to[i] = static_cast<float>(from[i]);
#endif
}

struct Shape {
  int64_t num_kv_heads, group, head_dim, value_dim, max_blocks, window;
  float scale, softcap;
};

// The heads of one row that share a key, over all that they see.
template <typename T>
void attend(const Shape& s, const float* query, const T* keys, const T* values, const int32_t* table, int64_t length,
            const float* sinks, float* out, float* scratch) {
  float* key = scratch;
  float* value = key + s.head_dim;
  float* scores = value + s.value_dim;          // (group, kBlockTokens)
  float* largest = scores + s.group * kBlockTokens;
  float* total = largest + s.group;
  std::fill_n(out, s.group * s.value_dim, 0.0f);
  std::fill_n(largest, s.group, kNone);
  std::fill_n(total, s.group, 0.0f);
  const int64_t first = s.window ? std::max<int64_t>(0, length - s.window) : 0;
  for (int64_t block = first / kBlockTokens; block * kBlockTokens < length; block++) {
    const int64_t begin = std::max(first, block * kBlockTokens);
    const int64_t count = std::min(length, (block + 1) * kBlockTokens) - begin;
    const int64_t place = table[block] * kBlockTokens + begin % kBlockTokens;
    for (int64_t t = 0; t < count; t++) {
      widen(keys + (place + t) * s.num_kv_heads * s.head_dim, key, s.head_dim);
      for (int64_t g = 0; g < s.group; g++) {
        const float* q = query + g * s.head_dim;
        float sum = 0.0f;
        for (int64_t d = 0; d < s.head_dim; d++) sum += q[d] * key[d];
        sum *= s.scale;
        scores[g * kBlockTokens + t] = s.softcap ? std::tanh(sum / s.softcap) * s.softcap : sum;
      }
    }
    for (int64_t g = 0; g < s.group; g++) {
      float* score = scores + g * kBlockTokens;
      float peak = largest[g];
      for (int64_t t = 0; t < count; t++) peak = std::max(peak, score[t]);
      const float shrink = std::exp(largest[g] - peak);
      float sum = total[g] * shrink;
      for (int64_t t = 0; t < count; t++) score[t] = std::exp(score[t] - peak);
      for (int64_t t = 0; t < count; t++) sum += score[t];
      largest[g] = peak;
      total[g] = sum;
      float* o = out + g * s.value_dim;
      for (int64_t d = 0; d < s.value_dim; d++) o[d] *= shrink;
    }
    for (int64_t t = 0; t < count; t++) {
      widen(values + (place + t) * s.num_kv_heads * s.value_dim, value, s.value_dim);
      for (int64_t g = 0; g < s.group; g++) {
        float* o = out + g * s.value_dim;
        const float weight = scores[g * kBlockTokens + t];
        for (int64_t d = 0; d < s.value_dim; d++) o[d] += weight * value[d];
      }
    }
  }
  for (int64_t g = 0; g < s.group; g++) {
    float sum = total[g], shrink = 1.0f;
    if (sinks) {
      const float peak = std::max(largest[g], sinks[g]);
      shrink = std::exp(largest[g] - peak);
      sum = sum * shrink + std::exp(sinks[g] - peak);
    }
    for (int64_t d = 0; d < s.value_dim; d++) out[g * s.value_dim + d] *= shrink / sum;
  }
}

at::Tensor paged_decode(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                        const at::Tensor& tables, const at::Tensor& lengths, double scale, int64_t window,
                        double softcap, const std::optional<at::Tensor>& sinks) {
  const int64_t num_rows = query.size(0), num_heads = query.size(1);
  Shape s;
  s.num_kv_heads = keys.size(1);
  s.group = num_heads / s.num_kv_heads;
  s.head_dim = query.size(2);
  s.value_dim = values.size(2);
  s.max_blocks = tables.size(1);
  s.window = window;
  s.scale = static_cast<float>(scale);
  s.softcap = static_cast<float>(softcap);
  TORCH_CHECK(keys.is_contiguous() && values.is_contiguous() && tables.is_contiguous() && lengths.is_contiguous());
  TORCH_CHECK(tables.scalar_type() == at::kInt && lengths.scalar_type() == at::kInt);
  TORCH_CHECK(keys.scalar_type() == values.scalar_type() && keys.size(2) == s.head_dim);
  const at::Tensor wide = query.to(at::kFloat).contiguous();
  at::Tensor out = at::empty({num_rows, num_heads, s.value_dim}, wide.options());
  at::Tensor wide_sinks;
  if (sinks) wide_sinks = sinks->to(at::kFloat).contiguous();
  const float* q = wide.const_data_ptr<float>();
  const float* sink = sinks ? wide_sinks.const_data_ptr<float>() : nullptr;
  const int32_t* table = tables.const_data_ptr<int32_t>();
  const int32_t* length = lengths.const_data_ptr<int32_t>();
  float* o = out.mutable_data_ptr<float>();
  int64_t num_seen = 0;
  for (int64_t row = 0; row < num_rows; row++) num_seen += window ? std::min<int64_t>(length[row], window) : length[row];
  const int64_t num_tasks = num_rows * s.num_kv_heads;
  const int64_t work = num_seen * num_heads * (s.head_dim + s.value_dim) / std::max<int64_t>(1, num_tasks);
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(1, work));
  const auto compute = [&](auto scalar) {
    using T = decltype(scalar);
    const T* k = keys.const_data_ptr<T>();
    const T* v = values.const_data_ptr<T>();
    at::parallel_for(0, num_tasks, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(s.head_dim + s.value_dim + s.group * (kBlockTokens + 2));
      for (int64_t task = begin; task < end; task++) {
        const int64_t row = task / s.num_kv_heads, head = task % s.num_kv_heads;
        const int64_t at = row * num_heads + head * s.group;
        attend<T>(s, q + at * s.head_dim, k + head * s.head_dim, v + head * s.value_dim, table + row * s.max_blocks,
                  length[row], sink ? sink + head * s.group : nullptr, o + at * s.value_dim, scratch.data());
      }
    });
  };
  if (keys.scalar_type() == at::kFloat) {
    compute(float{});
  } else if (keys.scalar_type() == at::kBFloat16) {
    compute(at::BFloat16{});
  } else {
    TORCH_CHECK(keys.scalar_type() == at::kHalf, "paged_decode computes in float32, bfloat16 and float16");
    compute(at::Half{});
  }
  return out.to(query.scalar_type());
}

}  // namespace

TORCH_LIBRARY(endstop, m) {
  m.def(
      "paged_decode(Tensor query, Tensor keys, Tensor values, Tensor tables, Tensor lengths, float scale, int window, "
      "float softcap, Tensor? sinks) -> Tensor");
}

TORCH_LIBRARY_IMPL(endstop, CPU, m) { m.impl("paged_decode", paged_decode); }

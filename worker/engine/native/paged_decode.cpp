// Attention of one new token of each sequence over its blocks in the KV cache, on a CPU.
//
// Why it is native: torch would have to copy the keys and values of all rows together, in every layer of every step, and
// pad them to the longest. The same in torch is worker/engine/kernels.py, which says what each argument is; the tests
// hold the two against each other.
//
// A row's result depends on that row alone, whoever its neighbours are and however many threads there are. Scores and
// sums are float32.

#include "parallel.h"
#include "shape.h"
#include "vectors.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

namespace {

using namespace endstop;

constexpr int kTogether = 4;  // heads that use a key or value while it is in a register

// Products of `num` queries with the keys of a block, one vector each.
template <int num, typename T>
inline void products(const Shape& s, const float* query, const T* key, int64_t count, float* scores) {
  const int64_t stride = padded(s.head_dim);
  for (int64_t t = 0; t < count; t++, key += s.num_kv_heads * s.head_dim) {
    Floats sums[num] = {};
    int64_t d = 0;
    for (; d + kLanes <= s.head_dim; d += kLanes) {
      const Floats k = load(key + d);
      for (int g = 0; g < num; g++) sums[g] = fma(load(query + g * stride + d), k, sums[g]);
    }
    if (d < s.head_dim) {
      const Floats k = load(key + d, s.head_dim - d);
      for (int g = 0; g < num; g++) sums[g] = fma(load(query + g * stride + d), k, sums[g]);
    }
    for (int g = 0; g < num; g++) scores[g * kBlockTokens + t] = sum(sums[g]);
  }
}

// Adds the weighted values of a block to what `num` heads have so far, which shrinks before.
template <int num, typename T>
inline void mix(const Shape& s, const float* weights, const float* shrinks, const T* values, int64_t count, float* out) {
  const int64_t stride = padded(s.value_dim);
  for (int64_t d = 0; d < s.value_dim; d += kLanes) {
    Floats sums[num];
    for (int g = 0; g < num; g++) sums[g] = load(out + g * stride + d) * shrinks[g];
    const T* value = values + d;
    const bool is_whole = d + kLanes <= s.value_dim;
    for (int64_t t = 0; t < count; t++, value += s.num_kv_heads * s.value_dim) {
      const Floats v = is_whole ? load(value) : load(value, s.value_dim - d);
      for (int g = 0; g < num; g++) sums[g] = fma(v, splat(weights[g * kBlockTokens + t]), sums[g]);
    }
    for (int g = 0; g < num; g++) store(out + g * stride + d, sums[g]);
  }
}

// Has a block of keys or values on its way from memory while the one before is computed: its rows are too far apart for
// the processor to see what comes next.
template <typename T>
inline void fetch(const Shape& s, const T* rows, int64_t block, int64_t dim) {
  constexpr int64_t kLineBytes = 64;
  const T* row = rows + block * kBlockTokens * s.num_kv_heads * dim;
  for (int64_t t = 0; t < kBlockTokens; t++, row += s.num_kv_heads * dim) {
    for (int64_t d = 0; d < dim; d += kLineBytes / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + d);
  }
}

// Calls what it is given with the heads from 0 to `group`, some at a time: the first of them, and their number as a
// constant.
template <typename F>
inline void in_parts(int64_t group, F&& call) {
  int64_t g = 0;
  for (; g + kTogether <= group; g += kTogether) call(g, std::integral_constant<int, kTogether>{});
  switch (group - g) {
    case 3: return call(g, std::integral_constant<int, 3>{});
    case 2: return call(g, std::integral_constant<int, 2>{});
    case 1: return call(g, std::integral_constant<int, 1>{});
  }
}

// The heads of one row that share a key, over all that they see.
template <typename T>
void attend(const Shape& s, const float* query, const T* keys, const T* values, const int32_t* table, int64_t length,
            const float* sinks, float* out, float* scratch) {
  const int64_t key_stride = padded(s.head_dim), value_stride = padded(s.value_dim);
  float* queries = scratch;                        // (group, key_stride), zeros behind each
  float* mixed = queries + s.group * key_stride;   // (group, value_stride)
  float* scores = mixed + s.group * value_stride;  // (group, kBlockTokens)
  std::fill_n(queries, s.group * (key_stride + value_stride), 0.0f);
  for (int64_t g = 0; g < s.group; g++) {
    for (int64_t d = 0; d < s.head_dim; d++) queries[g * key_stride + d] = query[g * s.head_dim + d] * s.scale;
  }
  std::vector<Seen> seen(s.group);
  std::vector<float> shrinks(s.group);
  const int64_t first = s.window ? std::max<int64_t>(0, length - s.window) : 0;
  for (int64_t block = first / kBlockTokens; block * kBlockTokens < length; block++) {
    const int64_t begin = std::max(first, block * kBlockTokens);
    const int64_t count = std::min(length, (block + 1) * kBlockTokens) - begin;
    const int64_t place = table[block] * kBlockTokens + begin % kBlockTokens;
    if ((block + 1) * kBlockTokens < length) {
      fetch(s, keys, table[block + 1], s.head_dim);
      fetch(s, values, table[block + 1], s.value_dim);
    }
    in_parts(s.group, [&](int64_t g, auto num) {
      products<num>(s, queries + g * key_stride, keys + place * s.num_kv_heads * s.head_dim, count,
                    scores + g * kBlockTokens);
    });
    const Ints is_there = order() < static_cast<int32_t>(count);
    for (int64_t g = 0; g < s.group; g++) {
      float* score = scores + g * kBlockTokens;
      store(score, seen[g].weigh(load(score), is_there, s.softcap, shrinks[g]));
    }
    in_parts(s.group, [&](int64_t g, auto num) {
      mix<num>(s, scores + g * kBlockTokens, shrinks.data() + g, values + place * s.num_kv_heads * s.value_dim, count,
               mixed + g * value_stride);
    });
  }
  for (int64_t g = 0; g < s.group; g++) {
    const float scale = seen[g].scale(sinks ? sinks + g : nullptr);
    for (int64_t d = 0; d < s.value_dim; d++) out[g * s.value_dim + d] = mixed[g * value_stride + d] * scale;
  }
}

at::Tensor paged_decode(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                        const at::Tensor& tables, const at::Tensor& lengths, double scale, int64_t window,
                        double softcap, const std::optional<at::Tensor>& sinks) {
  const int64_t num_rows = query.size(0), num_heads = query.size(1);
  const Shape s = shape_of(query, keys, values, tables, scale, window, softcap);
  TORCH_CHECK(lengths.scalar_type() == at::kInt && lengths.is_contiguous());
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
  const int64_t scratch_size = s.group * (padded(s.head_dim) + padded(s.value_dim) + kBlockTokens);
  with_type_of(keys, [&](auto scalar) {
    using T = decltype(scalar);
    const T* k = keys.const_data_ptr<T>();
    const T* v = values.const_data_ptr<T>();
    parallel(num_tasks, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(scratch_size);
      for (int64_t task = begin; task < end; task++) {
        const int64_t row = task / s.num_kv_heads, head = task % s.num_kv_heads;
        const int64_t at = row * num_heads + head * s.group;
        attend<T>(s, q + at * s.head_dim, k + head * s.head_dim, v + head * s.value_dim, table + row * s.max_blocks,
                  length[row], sink ? sink + head * s.group : nullptr, o + at * s.value_dim, scratch.data());
      }
    });
  });
  return out.to(query.scalar_type());
}

// Copies the new rows of (num_rows, num_kv_heads, dim) to their places in the cache.
void put(const at::Tensor& rows, at::Tensor& cache, const int64_t* places) {
  TORCH_CHECK(rows.scalar_type() == cache.scalar_type() && rows.size(1) == cache.size(1) && rows.size(2) == cache.size(2));
  TORCH_CHECK(cache.is_contiguous());
  const at::Tensor even = rows.stride(2) == 1 ? rows : rows.contiguous();
  const int64_t num_heads = rows.size(1), size = rows.size(2) * rows.element_size();
  const char* from = static_cast<const char*>(even.const_data_ptr());
  char* to = static_cast<char*>(cache.mutable_data_ptr());
  for (int64_t row = 0; row < rows.size(0); row++) {
    TORCH_CHECK(0 <= places[row] && places[row] < cache.size(0));
    for (int64_t head = 0; head < num_heads; head++) {
      const int64_t at = row * even.stride(0) + head * even.stride(1);
      std::memcpy(to + (places[row] * num_heads + head) * size, from + at * even.element_size(), size);
    }
  }
}

at::Tensor store_and_decode(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor keys,
                            at::Tensor values, const at::Tensor& places, const at::Tensor& tables,
                            const at::Tensor& lengths, double scale, int64_t window, double softcap,
                            const std::optional<at::Tensor>& sinks) {
  TORCH_CHECK(places.scalar_type() == at::kLong && places.is_contiguous() && places.size(0) == key.size(0));
  put(key, keys, places.const_data_ptr<int64_t>());
  put(value, values, places.const_data_ptr<int64_t>());
  return paged_decode(query, keys, values, tables, lengths, scale, window, softcap, sinks);
}

}  // namespace

TORCH_LIBRARY(endstop, m) {
  m.def("set_threads(int number) -> ()", [](int64_t number) { num_threads = static_cast<int>(number); });
  m.def(
      "paged_decode(Tensor query, Tensor keys, Tensor values, Tensor tables, Tensor lengths, float scale, int window, "
      "float softcap, Tensor? sinks) -> Tensor");
  m.def(
      "store_and_decode(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, Tensor places, "
      "Tensor tables, Tensor lengths, float scale, int window, float softcap, Tensor? sinks) -> Tensor");
}

TORCH_LIBRARY_IMPL(endstop, CPU, m) {
  m.impl("paged_decode", paged_decode);
  m.impl("store_and_decode", store_and_decode);
}

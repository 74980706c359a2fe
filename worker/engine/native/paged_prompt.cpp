// Attention of the new tokens of prompts over their blocks in the KV cache, on a CPU.
//
// Why it is native: torch's own wants the keys and values of a prompt in one piece and in every head, and a mask where
// some of them were there before; it computed chunks of a long prompt at a third of this speed. The same in torch is
// worker/engine/kernels.py; the tests hold the two against each other.
//
// A block of keys is turned once for many queries, so that sixteen scores come of one row of multiplications. A token's
// result depends on the tokens before it alone, however the prompt is cut. Scores and sums are float32.

#include "parallel.h"
#include "shape.h"
#include "vectors.h"

#include <torch/library.h>

#include <algorithm>
#include <vector>

namespace {

using namespace endstop;

constexpr int kTogether = kHasManyRegisters ? 8 : 4;  // queries that use a key or value while it is in a register
constexpr int64_t kQueries = 96;  // of one head of keys, that are computed together: they stay in the L2 cache

// Some tokens of a prompt: the queries of all heads that share a key.
struct Tile {
  int64_t first, count;  // tokens, counted from the first new one
  int64_t start;         // position of the first new one
  const int32_t* table;
};

struct Scratch {
  std::vector<float> queries, mixed, keys, values;
  std::vector<Seen> seen;

  Scratch(const Shape& s, int64_t num_tokens)
      : queries(num_tokens * s.group * s.head_dim),
        mixed(num_tokens * s.group * padded(s.value_dim)),
        keys(kBlockTokens * s.head_dim),
        values(kBlockTokens * padded(s.value_dim)),
        seen(num_tokens * s.group) {}
};

// One block's keys as (head_dim, kBlockTokens), and its values as (kBlockTokens, padded(value_dim)), in float32. What is
// behind the last token is nobody's and may be anything: it is zero here.
template <typename T>
void turn(const Shape& s, const T* keys, const T* values, int64_t count, Scratch& scratch) {
  const int64_t stride = padded(s.value_dim);
  std::fill(scratch.keys.begin(), scratch.keys.end(), 0.0f);
  std::fill(scratch.values.begin(), scratch.values.end(), 0.0f);
  for (int64_t t = 0; t < count; t++) {
    const T* key = keys + t * s.num_kv_heads * s.head_dim;
    for (int64_t d = 0; d < s.head_dim; d++) scratch.keys[d * kBlockTokens + t] = static_cast<float>(key[d]);
    const T* value = values + t * s.num_kv_heads * s.value_dim;
    for (int64_t d = 0; d < s.value_dim; d += kLanes) store(&scratch.values[t * stride + d], load(value + d, s.value_dim - d));
  }
}

// Lets `num` queries look at the block in `scratch`. `positions` are theirs in the sequence, `begin` is the block's.
template <int num>
inline void look(const Shape& s, Scratch& scratch, int64_t at, const int64_t* positions, int64_t begin) {
  Floats scores[num] = {};
  const float* query = &scratch.queries[at * s.head_dim];
  for (int64_t d = 0; d < s.head_dim; d++) {
    const Floats key = load(&scratch.keys[d * kBlockTokens]);
#pragma GCC unroll 8
    for (int q = 0; q < num; q++) scores[q] = fma(key, splat(query[q * s.head_dim + d]), scores[q]);
  }
  float weights[num][kBlockTokens], shrinks[num];
  for (int q = 0; q < num; q++) {
    const Ints keys = order() + static_cast<int32_t>(begin);
    Ints is_there = keys <= static_cast<int32_t>(positions[q]);
    if (s.window) is_there = is_there & (keys > static_cast<int32_t>(positions[q] - s.window));
    store(weights[q], scratch.seen[at + q].weigh(scores[q], is_there, s.softcap, shrinks[q]));
  }
  const int64_t stride = padded(s.value_dim);
  float* mixed = &scratch.mixed[at * stride];
  for (int64_t d = 0; d < s.value_dim; d += kLanes) {
    Floats sums[num];
#pragma GCC unroll 8
    for (int q = 0; q < num; q++) sums[q] = load(mixed + q * stride + d) * shrinks[q];
    for (int t = 0; t < kBlockTokens; t++) {
      const Floats value = load(&scratch.values[t * stride + d]);
#pragma GCC unroll 8
      for (int q = 0; q < num; q++) sums[q] = fma(value, splat(weights[q][t]), sums[q]);
    }
#pragma GCC unroll 8
    for (int q = 0; q < num; q++) store(mixed + q * stride + d, sums[q]);
  }
}

// Args: query and out (num_tokens, num_heads, ...) at the tile's first token and the first of its heads.
template <typename T>
void attend(const Shape& s, const Tile& tile, const float* query, const T* keys, const T* values, const float* sinks,
            float* out, Scratch& scratch) {
  const int64_t num_queries = tile.count * s.group, stride = padded(s.value_dim);
  std::vector<int64_t> positions(num_queries);
  for (int64_t i = 0; i < tile.count; i++) {
    for (int64_t g = 0; g < s.group; g++) {
      const float* from = query + (i * s.num_heads + g) * s.head_dim;
      float* to = &scratch.queries[(i * s.group + g) * s.head_dim];
      for (int64_t d = 0; d < s.head_dim; d++) to[d] = from[d] * s.scale;
      positions[i * s.group + g] = tile.start + tile.first + i;
    }
  }
  std::fill_n(scratch.mixed.begin(), num_queries * stride, 0.0f);
  std::fill_n(scratch.seen.begin(), num_queries, Seen{});
  const int64_t length = tile.start + tile.first + tile.count;
  const int64_t oldest = s.window ? std::max<int64_t>(0, tile.start + tile.first - s.window + 1) : 0;
  for (int64_t block = oldest / kBlockTokens; block * kBlockTokens < length; block++) {
    const int64_t place = tile.table[block] * kBlockTokens, begin = block * kBlockTokens;
    turn(s, keys + place * s.num_kv_heads * s.head_dim, values + place * s.num_kv_heads * s.value_dim,
         std::min(kBlockTokens, length - begin), scratch);
    // Queries before the block have nothing to see in it.
    int64_t at = std::max<int64_t>(0, begin - tile.start - tile.first) * s.group;
    for (; at + kTogether <= num_queries; at += kTogether) look<kTogether>(s, scratch, at, &positions[at], begin);
    for (; at < num_queries; at++) look<1>(s, scratch, at, &positions[at], begin);
  }
  for (int64_t i = 0; i < tile.count; i++) {
    for (int64_t g = 0; g < s.group; g++) {
      const float scale = scratch.seen[i * s.group + g].scale(sinks ? sinks + g : nullptr);
      const float* from = &scratch.mixed[(i * s.group + g) * stride];
      float* to = out + (i * s.num_heads + g) * s.value_dim;
      for (int64_t d = 0; d < s.value_dim; d++) to[d] = from[d] * scale;
    }
  }
}

at::Tensor paged_prompt(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                        const at::Tensor& tables, const at::Tensor& starts, const at::Tensor& bounds, double scale,
                        int64_t window, double softcap, const std::optional<at::Tensor>& sinks) {
  const Shape s = shape_of(query, keys, values, tables, scale, window, softcap);
  for (const at::Tensor* one : {&starts, &bounds}) TORCH_CHECK(one->scalar_type() == at::kInt && one->is_contiguous());
  const int64_t num_rows = starts.size(0);
  TORCH_CHECK(bounds.size(0) == num_rows + 1 && tables.size(0) == num_rows);
  const at::Tensor wide = query.to(at::kFloat).contiguous();
  at::Tensor out = at::empty({query.size(0), s.num_heads, s.value_dim}, wide.options());
  at::Tensor wide_sinks;
  if (sinks) wide_sinks = sinks->to(at::kFloat).contiguous();
  const float* sink = sinks ? wide_sinks.const_data_ptr<float>() : nullptr;
  const int32_t* bound = bounds.const_data_ptr<int32_t>();
  const int64_t tile_tokens = std::max<int64_t>(1, kQueries / s.group);
  std::vector<std::pair<int64_t, Tile>> tiles;  // with the packed index of the first token
  for (int64_t row = 0; row < num_rows; row++) {
    const int64_t size = bound[row + 1] - bound[row], start = starts.const_data_ptr<int32_t>()[row];
    TORCH_CHECK(start + size <= s.max_blocks * kBlockTokens && bound[row + 1] <= query.size(0));
    for (int64_t first = 0; first < size; first += tile_tokens) {
      const int32_t* table = tables.const_data_ptr<int32_t>() + row * s.max_blocks;
      tiles.push_back({bound[row] + first, {first, std::min(tile_tokens, size - first), start, table}});
    }
  }
  const float* q = wide.const_data_ptr<float>();
  float* o = out.mutable_data_ptr<float>();
  with_type_of(keys, [&](auto scalar) {
    using T = decltype(scalar);
    const T* k = keys.const_data_ptr<T>();
    const T* v = values.const_data_ptr<T>();
    const int64_t num_tasks = static_cast<int64_t>(tiles.size()) * s.num_kv_heads;
    parallel(num_tasks, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(s, tile_tokens);
      for (int64_t task = begin; task < end; task++) {
        const auto& [token, tile] = tiles[task / s.num_kv_heads];
        const int64_t head = task % s.num_kv_heads, at = token * s.num_heads + head * s.group;
        attend<T>(s, tile, q + at * s.head_dim, k + head * s.head_dim, v + head * s.value_dim,
                  sink ? sink + head * s.group : nullptr, o + at * s.value_dim, scratch);
      }
    });
  });
  return out.to(query.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(endstop, m) {
  m.def(
      "paged_prompt(Tensor query, Tensor keys, Tensor values, Tensor tables, Tensor starts, Tensor bounds, "
      "float scale, int window, float softcap, Tensor? sinks) -> Tensor");
}

TORCH_LIBRARY_IMPL(endstop, CPU, m) { m.impl("paged_prompt", paged_prompt); }

#include "kernels/cuda/attention.h"

#include <algorithm>
#include <string>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/composite.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sources.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cuda {
namespace {

constexpr int kThreads = 128;  // kAttentionThreads
constexpr int kTileKeys = 64;
// Blocks that fill an H100: two on each processor.
constexpr int kBlocks = 2 * 132;
constexpr std::size_t kMostRows = 128;

// The largest divisor of the group that registers allow.
int queries_per_block(int group, int head_size) {
  int most = head_size > 128 ? 2 : 4;
  while (group % most != 0) --most;
  return most;
}

bool suits(const mx::array& q, const BatchRow& row) {
  const int size = q.shape(3);
  return row.num_tokens == 1 && (size == 64 || size == 128 || size == 256) &&
         (q.dtype() == mx::bfloat16 || q.dtype() == mx::float16) &&
         row.keys.dtype() == q.dtype() && row.values.dtype() == q.dtype() &&
         row.keys.shape() == row.values.shape() && row.keys.shape(0) == 1 &&
         row.keys.shape(3) == size;
}

bool suits(const mx::array& q,
           std::span<const BatchRow> rows,
           const AttentionParameters& parameters) {
  return !parameters.mask && q.shape(0) == 1 && rows.size() <= kMostRows &&
         static_cast<std::size_t>(q.shape(2)) == rows.size() &&
         std::ranges::all_of(rows,
                             [&](const auto& row) { return suits(q, row); });
}

// Kernels are made for these numbers of rows.
std::size_t padded(std::size_t num_rows) {
  std::size_t result = 1;
  while (result < num_rows) result *= 2;
  return result;
}

// Position, keys seen and capacity of each row.
mx::array places_of(std::span<const BatchRow> rows) {
  std::vector<int> places;
  for (const auto& row : rows) {
    places.insert(places.end(), {row.at, row.num_keys, row.keys.shape(2)});
  }
  return integers(places);
}

void add_buffers(Launch& call, std::span<const BatchRow> rows) {
  for (std::size_t i = 0; i < padded(rows.size()); ++i) {
    const auto n = std::to_string(i);
    const auto& row = rows[std::min(i, rows.size() - 1)];
    call.inputs.emplace_back("k" + n, row.keys);
    call.inputs.emplace_back("v" + n, row.values);
  }
}

// Picks the buffers of this block's row.
std::string text_of_buffers(std::size_t num_rows) {
  std::string text = "  T* keys;\n  T* values;\n  switch (blockIdx.z) {\n";
  for (std::size_t i = 0; i < padded(num_rows); ++i) {
    const auto n = std::to_string(i);
    text += "    case " + n + ": keys = const_cast<T*>(k" + n +
            "), values = const_cast<T*>(v" + n + "); break;\n";
  }
  return text + "  }\n";
}

// What must be there before the buffers are read.
mx::array after_all(const mx::array& q, std::span<const BatchRow> rows) {
  std::vector<mx::array> all;
  for (const auto& row : rows) {
    if (row.after) all.push_back(*row.after);
  }
  return all.empty() ? q : mx::depends({q}, all)[0];
}

struct Shares {
  mx::array sums;
  mx::array weights;
  int count;
};

Shares attend(const mx::array& q,
              const mx::array& k,
              const mx::array& v,
              std::span<const BatchRow> rows,
              const AttentionParameters& parameters) {
  const int num_rows = static_cast<int>(rows.size());
  const int heads = q.shape(1);
  const int size = q.shape(3);
  const int queries = queries_per_block(heads / k.shape(1), size);
  const int groups = heads / queries;
  const int most_keys =
      std::ranges::max(rows, {}, &BatchRow::num_keys).num_keys;
  const int tiles = (most_keys + kTileKeys - 1) / kTileKeys;
  const int shares = std::clamp(kBlocks / (groups * num_rows), 1, tiles);
  Launch call{
      .name = "decode_attention",
      .header = k_decode_attention,
      .inputs = {{"q", after_all(q, rows)},
                 {"new_keys", k},
                 {"new_values", v},
                 {"places", places_of(rows)}},
      .output_names = {"sums", "weights"},
      .output_shapes = {{num_rows, heads, shares, size},
                        {num_rows, heads, shares, 2}},
      .output_dtypes = {mx::float32, mx::float32},
      .scalars = {{"num_rows", num_rows},
                  {"num_heads", heads},
                  {"num_kv_heads", k.shape(1)},
                  {"scale", parameters.scale},
                  {"softcap", parameters.softcap}},
      .constants = {{"T", q.dtype()}, {"D", size}, {"QUERIES", queries}},
      .blocks_x = shares,
      .blocks_y = groups,
      .blocks_z = num_rows,
      .threads = kThreads};
  add_buffers(call, rows);
  call.body = [&] {
    return text_of_buffers(rows.size()) + R"(
  const int* place = places + blockIdx.z * 3;
  mlxlm::decode_attention<T, D, QUERIES>(
      {q, new_keys, new_values, num_rows, num_heads, num_kv_heads, scale, softcap},
      {keys, values, place[0], place[1], place[2]}, sums, weights);
)";
  };
  auto made = launch(call);
  return {made[0], made[1], shares};
}

mx::array combine(const mx::array& q,
                  const Shares& shares,
                  const AttentionParameters& parameters) {
  Launch call{.name = "combine_shares",
              .header = k_decode_attention,
              .inputs = {{"sums", shares.sums}, {"weights", shares.weights}},
              .output_names = {"y"},
              .output_shapes = {{1, q.shape(2), q.shape(1), q.shape(3)}},
              .output_dtypes = {q.dtype()},
              .scalars = {{"num_shares", shares.count}},
              .constants = {{"T", q.dtype()}, {"D", q.shape(3)}},
              .blocks_x = q.shape(1),
              .blocks_y = q.shape(2),
              .threads = q.shape(3)};
  const bool has_sinks = parameters.sinks.has_value();
  if (has_sinks) {
    call.inputs.emplace_back("sinks",
                             mx::astype(*parameters.sinks, mx::float32));
  }
  call.body = [&] {
    return std::string(
               "  mlxlm::combine_shares<T, D>(sums, weights, num_shares, ") +
           (has_sinks ? "sinks" : "nullptr") + ", y);\n";
  };
  // What follows takes tokens' heads side by side: the view costs nothing.
  return mx::transpose(launch(call)[0], {0, 2, 1, 3});
}

}  // namespace

std::optional<AppendedRows> append_rows(const mx::array& q,
                                        const mx::array& k,
                                        const mx::array& v,
                                        std::span<const BatchRow> rows,
                                        const AttentionParameters& parameters) {
  if (!suits(q, rows, parameters)) return std::nullopt;
  const auto shares = attend(q, k, v, rows, parameters);
  return AppendedRows{combine(q, shares, parameters), shares.weights};
}

AppendedAttention append_attention(const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const mx::array& keys,
                                   const mx::array& values,
                                   int at,
                                   int num_keys,
                                   const AttentionParameters& parameters) {
  const BatchRow row{
      .keys = keys, .values = values, .at = at, .num_keys = num_keys};
  auto made = append_rows(q, k, v, {&row, 1}, parameters);
  if (!made) {
    return composite::append_attention(
        cuda_table(), q, k, v, keys, values, at, num_keys, parameters);
  }
  auto written = mx::depends({keys, values}, {made->written});
  return {made->out, written[0], written[1]};
}

}  // namespace mlxlm::kernels::cuda

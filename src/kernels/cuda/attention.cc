#include "kernels/cuda/attention.h"

#include <algorithm>
#include <bit>

#include <mlx/mlx.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/sources.h"

namespace mlxlm::kernels::cuda {
namespace {

constexpr int kThreads = 128;  // kAttentionThreads
constexpr int kTileKeys = 64;
// Blocks that fill an H100: two on each processor.
constexpr int kBlocks = 2 * 132;

constexpr char kBody[] = R"(
  const KeyStrides ks{k_strides[0], k_strides[1], k_strides[2]};
  const KeyStrides vs{v_strides[0], v_strides[1], v_strides[2]};
  const DecodeAttention<T> a{q, k, v, ks, vs, q_shape[1], k_shape[1], k_shape[2],
                             __int_as_float(SCALE), __int_as_float(SOFTCAP)};
  mlxlm::decode_attention<T, D, QUERIES>(a, sums, weights);
)";

// The largest divisor of the group that registers allow.
int queries_per_block(int group, int head_size) {
  int most = head_size > 128 ? 2 : 4;
  while (group % most != 0) --most;
  return most;
}

}  // namespace

bool suits_decode(const mx::array& q,
                  const mx::array& k,
                  const mx::array& v,
                  const AttentionParameters& parameters) {
  const int size = q.shape(3);
  return q.shape(2) == 1 && !parameters.mask &&
         (size == 64 || size == 128 || size == 256) && v.shape(3) == size &&
         (q.dtype() == mx::bfloat16 || q.dtype() == mx::float16) &&
         k.dtype() == q.dtype() && v.dtype() == q.dtype();
}

mx::array decode_attention(const mx::array& q,
                           const mx::array& k,
                           const mx::array& v,
                           const AttentionParameters& parameters) {
  const int rows = q.shape(0);
  const int heads = q.shape(1);
  const int size = q.shape(3);
  const int queries = queries_per_block(heads / k.shape(1), size);
  const int tiles = (k.shape(2) + kTileKeys - 1) / kTileKeys;
  const int groups = heads / queries;
  const int shares = std::clamp(kBlocks / (groups * rows), 1, tiles);
  Launch parts{
      .name = "decode_attention",
      .header = k_decode_attention,
      .body = kBody,
      .inputs = {{"q", q}, {"k", k}, {"v", v}},
      .output_names = {"sums", "weights"},
      .output_shapes = {{rows, heads, shares, size}, {rows, heads, shares, 2}},
      .output_dtypes = {mx::float32, mx::float32},
      .constants = {{"T", q.dtype()},
                    {"D", size},
                    {"QUERIES", queries},
                    {"SCALE", std::bit_cast<int>(parameters.scale)},
                    {"SOFTCAP", std::bit_cast<int>(parameters.softcap)}},
      .blocks_x = shares,
      .blocks_y = groups,
      .blocks_z = rows,
      .threads = kThreads,
      // Keys and values lie in a larger buffer.
      .copy_strided_inputs = false};
  auto made = launch(parts);
  Launch combine{.name = "combine_shares",
                 .header = k_decode_attention,
                 .inputs = {{"sums", made[0]}, {"weights", made[1]}},
                 .output_names = {"y"},
                 .output_shapes = {q.shape()},
                 .output_dtypes = {q.dtype()},
                 .constants = {{"T", q.dtype()}, {"D", size}},
                 .blocks_x = rows * heads,
                 .threads = size};
  const bool has_sinks = parameters.sinks.has_value();
  if (has_sinks) {
    combine.inputs.emplace_back("sinks",
                                mx::astype(*parameters.sinks, mx::float32));
  }
  combine.body = std::string(
                     "  mlxlm::combine_shares<T, D>(sums, weights, "
                     "sums_shape[2], sums_shape[1], ") +
                 (has_sinks ? "sinks" : "nullptr") + ", y);\n";
  return launch(combine)[0];
}

}  // namespace mlxlm::kernels::cuda

#include "models/latent_fields.h"

#include <cmath>

#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/weight_names.h"
#include "nn/linear.h"

namespace mlxlm {
namespace {

constexpr int kMaxRank = 1 << 16;
constexpr int kMaxHeadSize = 1 << 14;

// What yarn's mscale_all_dim makes of the scale of attention.
float yarn_factor(const ConfigReader& config) {
  const auto scaling = find_rope_scaling(config);
  if (!scaling) return 1;
  const double mscale = scaling->get_float("mscale_all_dim", 0);
  const double factor = scaling->get_float("factor", 1);
  if (mscale == 0 || factor <= 1) return 1;
  const double s = 0.1 * mscale * std::log(factor) + 1;
  return static_cast<float>(s * s);
}

// The quantization of a matrix by its shapes.
Quantization quantization_of(const mx::array& weight,
                             const mx::array& scales,
                             int columns) {
  return {.group_size = columns / scales.shape(-1),
          .bits = weight.shape(-1) * 32 / columns};
}

void put_quantized(Checkpoint& checkpoint,
                   const std::string& path,
                   const mx::array& weight,
                   const Quantization& quantization) {
  const auto& [group_size, bits, mode] = quantization;
  if (weight.shape(-1) % group_size != 0) {
    checkpoint.weights.insert_or_assign(path + ".weight", weight);
    return;
  }
  auto parts = mx::quantize(weight, group_size, bits, mode);
  checkpoint.weights.insert_or_assign(path + ".weight", parts[0]);
  checkpoint.weights.insert_or_assign(path + ".scales", parts[1]);
  if (parts.size() > 2) {
    checkpoint.weights.insert_or_assign(path + ".biases", parts[2]);
  }
  checkpoint.quantized.insert_or_assign(path, quantization);
}

}  // namespace

LatentSpec read_latent(const ConfigReader& config,
                       ArchSpec& spec,
                       const LatentDefaults& defaults) {
  auto read = [&](const char* key, int fallback, int min, int max) {
    return fallback == 0 ? config.require_int(key, min, max)
                         : config.get_int(key, fallback, min, max);
  };
  LatentSpec latent;
  auto& sizes = latent.sizes;
  sizes.num_heads = spec.num_heads;
  // Null says that there is none.
  const bool given = config.raw().contains("q_lora_rank");
  sizes.query_rank = config.find_int("q_lora_rank", 0, kMaxRank)
                         .value_or(given ? 0 : defaults.query_rank);
  sizes.rank = read("kv_lora_rank", defaults.rank, 1, kMaxRank);
  sizes.fixed = read("qk_nope_head_dim", defaults.fixed, 1, kMaxHeadSize);
  sizes.rotated = read("qk_rope_head_dim", defaults.rotated, 2, kMaxHeadSize);
  sizes.value = defaults.value < 0
                    ? -defaults.value
                    : read("v_head_dim", defaults.value, 1, kMaxHeadSize);
  latent.bias = config.get_bool("attention_bias", false);
  spec.attention_scale =
      yarn_factor(config) / std::sqrt(static_cast<float>(sizes.head()));
  return latent;
}

void split_kv_b(Checkpoint& checkpoint,
                const std::string& attention,
                const nn::LatentSizes& sizes) {
  const auto path = attention + ".kv_b_proj";
  const mx::Shape whole{sizes.num_heads * (sizes.fixed + sizes.value),
                        sizes.rank};
  auto found = checkpoint.weights.find(path + ".weight");
  if (found == checkpoint.weights.end()) return;
  auto& weights = checkpoint.weights;
  auto quantized = checkpoint.quantized.find(path);
  std::optional<Quantization> quantization;
  auto weight = found->second;
  if (quantized != checkpoint.quantized.end()) {
    auto scales = weights.find(path + ".scales");
    if (scales == weights.end() || scales->second.ndim() != 2 ||
        weight.ndim() != 2) {
      return;  // the binder names what is wrong
    }
    quantization = quantized->second;
    auto zeros = weights.find(path + ".biases");
    kernels::Linear linear{.weight = weight,
                           .scales = scales->second,
                           .group_size = quantization->group_size,
                           .bits = quantization->bits,
                           .mode = quantization->mode};
    if (zeros != weights.end()) linear.zeros = zeros->second;
    if (quantization->mode == "affine") {
      auto fitting = quantization_of(weight, scales->second, sizes.rank);
      quantization->group_size = linear.group_size = fitting.group_size;
      quantization->bits = linear.bits = fitting.bits;
    }
    weight = kernels::dequantized_weight(linear);
  }
  if (weight.shape() != whole) return;
  for (const char* tensor : {".weight", ".scales", ".biases"}) {
    weights.erase(path + tensor);
  }
  checkpoint.quantized.erase(path);
  auto heads = mx::unflatten(weight, 0, {sizes.num_heads, -1});
  auto parts = mx::split(heads, mx::Shape{sizes.fixed}, 1);
  auto key_up = mx::contiguous(mx::swapaxes(parts[0], -1, -2));
  auto value_up = mx::contiguous(parts[1]);
  if (quantization) {
    put_quantized(checkpoint, attention + ".embed_q", key_up, *quantization);
    put_quantized(
        checkpoint, attention + ".unembed_out", value_up, *quantization);
    return;
  }
  weights.insert_or_assign(attention + ".embed_q.weight", key_up);
  weights.insert_or_assign(attention + ".unembed_out.weight", value_up);
}

}  // namespace mlxlm

#include "load/gguf_checkpoint.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdio>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <mlx/mlx.h>

#include "core/log.h"
#include "core/parallel.h"
#include "load/gguf_architecture.h"
#include "load/gguf_config.h"
#include "load/gguf_parts.h"
#include "load/gguf_repack.h"
#include "load/memory.h"

namespace mlxlm {
namespace {

// More layers than any model, so that a file can't ask for endless work.
constexpr std::int64_t kMaxLayers = 100000;

// Read into the configuration instead of the weights.
bool is_rope_factor(std::string_view name) {
  return name == "rope_freqs.weight" || name == "rope_factors_long.weight" ||
         name == "rope_factors_short.weight" ||
         name.ends_with(".attn_rot_embd.weight");
}

std::string join(const std::vector<std::string>& names) {
  constexpr std::size_t kMaxShown = 20;
  std::string out;
  for (std::size_t i = 0; i < std::min(names.size(), kMaxShown); ++i) {
    out += (i == 0 ? "" : ", ") + names[i];
  }
  if (names.size() > kMaxShown) {
    out += " and " + std::to_string(names.size() - kMaxShown) + " more";
  }
  return out;
}

// "blk.3.attn_q.weight" as layer 3, "attn_q", "weight".
struct SplitName {
  std::optional<int> layer;
  std::string_view module;
  std::string_view suffix;
};

std::optional<SplitName> split_name(std::string_view name) {
  SplitName split;
  auto dot = name.rfind('.');
  if (dot == std::string_view::npos) {
    return std::nullopt;
  }
  split.suffix = name.substr(dot + 1);
  name = name.substr(0, dot);
  if (name.starts_with("blk.")) {
    name.remove_prefix(4);
    int layer = 0;
    auto [end, error] =
        std::from_chars(name.data(), name.data() + name.size(), layer);
    if (error != std::errc() || layer < 0 || end == name.data() + name.size() ||
        *end != '.') {
      return std::nullopt;
    }
    split.layer = layer;
    name.remove_prefix(static_cast<std::size_t>(end - name.data()) + 1);
  }
  split.module = name;
  return split;
}

class Converter {
 public:
  Converter(const GgufParts& parts, const LoadOptions& options)
      : parts_(parts),
        options_(options),
        architecture_(find_gguf_architecture(parts)) {
    checkpoint_.config = gguf_config(parts, architecture_);
    checkpoint_.source = parts.first().path();
    auto layers =
        checkpoint_.config.at("num_hidden_layers").get<std::int64_t>();
    if (layers < 0 || layers > kMaxLayers) {
      throw parts.first().error(
          quoted_name(std::string(architecture_.name) + ".block_count") +
          " is " + std::to_string(layers));
    }
    num_layers_ = static_cast<int>(layers);
  }

  Checkpoint convert() {
    check_missing();
    auto tensors = parts_.tensors();
    check_unknown(tensors);
    std::uint64_t total = 0;
    std::uint64_t converted = 0;
    for (const auto& entry : tensors) {
      total += entry.tensor->data.size();
      converted += converted_bytes(*entry.tensor);
    }
    require_loading_memory(converted, checkpoint_.source);
    std::string what =
        std::filesystem::path(checkpoint_.source).filename().string();
    std::atomic<std::uint64_t> done = 0;
    const auto caller = std::this_thread::get_id();
    auto advance = [&](const GgufParts::Entry& entry) {
      entry.file->let_go_of(*entry.tensor);
      done += entry.tensor->data.size();
      if (options_.progress && std::this_thread::get_id() == caller) {
        options_.progress({what, done, total});
      }
    };
    std::vector<std::optional<GgufMatrix>> matrices(tensors.size());
    parallel_for(tensors.size(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        if (!becomes_matrix(tensors[i])) continue;
        matrices[i] = repack_tensor(
            *tensors[i].file, *tensors[i].tensor, source_rows(tensors[i]));
        advance(tensors[i]);
      }
    });
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (matrices[i]) {
        add_matrix(tensors[i], std::move(*matrices[i]));
      } else {
        add_values(tensors[i]);
        advance(tensors[i]);
      }
    }
    report_losses(what);
    return std::move(checkpoint_);
  }

 private:
  struct Target {
    std::string module;  // "model.layers.3.self_attn.q_proj"
    std::string_view suffix;
    GgufChange change;
  };

  std::optional<Target> target_of(std::string_view name) const {
    auto split = split_name(name);
    if (!split || (split->suffix != "weight" && split->suffix != "bias")) {
      return std::nullopt;
    }
    std::span<const GgufTensorName> names = gguf_outer_tensors();
    std::string prefix;
    if (split->layer) {
      if (*split->layer >= num_layers_) {
        return std::nullopt;
      }
      names = architecture_.layer_tensors;
      prefix = "model.layers." + std::to_string(*split->layer) + ".";
    }
    auto found = std::ranges::find(names, split->module, &GgufTensorName::gguf);
    if (found == names.end()) {
      return std::nullopt;
    }
    Target target{
        prefix + std::string(found->reference), split->suffix, found->change};
    if (architecture_.norms_plus_one && split->module.ends_with("norm")) {
      target.change = GgufChange::plus_one;
    }
    return target;
  }

  void check_missing() const {
    std::vector<std::string> missing;
    auto need = [&](const std::string& name) {
      if (parts_.find_tensor(name).tensor == nullptr) {
        missing.push_back(name);
      }
    };
    need("token_embd.weight");
    need("output_norm.weight");
    for (int layer = 0; layer < num_layers_; ++layer) {
      for (const auto& name : architecture_.layer_tensors) {
        need("blk." + std::to_string(layer) + "." + std::string(name.gguf) +
             ".weight");
      }
    }
    if (!missing.empty()) {
      throw Error(ErrorKind::weights,
                  checkpoint_.source + ": " + std::to_string(missing.size()) +
                      " tensors are missing for the architecture " +
                      std::string(architecture_.name) + " with " +
                      std::to_string(num_layers_) +
                      " layers: " + join(missing));
    }
  }

  void check_unknown(std::vector<GgufParts::Entry>& tensors) const {
    std::vector<std::string> unknown;
    std::erase_if(tensors, [&](const GgufParts::Entry& entry) {
      if (is_rope_factor(entry.tensor->name)) {
        return true;
      }
      if (!target_of(entry.tensor->name)) {
        unknown.push_back(quoted_name(entry.tensor->name));
        return true;
      }
      return false;
    });
    if (unknown.empty()) {
      return;
    }
    std::string message =
        checkpoint_.source + ": " + std::to_string(unknown.size()) +
        " tensors don't belong to the architecture " +
        std::string(architecture_.name) + " with " +
        std::to_string(num_layers_) + " layers: " + join(unknown);
    if (options_.strict) {
      throw Error(ErrorKind::weights, message);
    }
    log_info(message + "; ignored");
  }

  // Where each row of a head was before llama.cpp put the halves of rope's
  // pairs beside each other; none for tensors without such rows.
  std::vector<int> source_rows(const GgufParts::Entry& entry) const {
    const GgufChange change = target_of(entry.tensor->name)->change;
    if (change != GgufChange::permuted_queries &&
        change != GgufChange::permuted_keys) {
      return {};
    }
    const char* key = change == GgufChange::permuted_queries
                          ? "num_attention_heads"
                          : "num_key_value_heads";
    auto heads = checkpoint_.config.at(key).get<std::int64_t>();
    int rows = entry.tensor->shape.front();
    if (heads <= 0 || rows % heads != 0 || rows / heads % 2 != 0) {
      throw entry.file->error("tensor " + quoted_name(entry.tensor->name) +
                              " has " + std::to_string(rows) +
                              " rows, which can't be those of " +
                              std::to_string(heads) + " heads of an even size");
    }
    int head_rows = static_cast<int>(rows / heads);
    std::vector<int> source(static_cast<std::size_t>(rows));
    for (int row = 0; row < rows; ++row) {
      int in_head = row % head_rows;
      int half = in_head / (head_rows / 2);
      int pair = in_head % (head_rows / 2);
      source[static_cast<std::size_t>(row)] = row - in_head + 2 * pair + half;
    }
    return source;
  }

  bool becomes_matrix(const GgufParts::Entry& entry) const {
    const GgufTensor& tensor = *entry.tensor;
    return tensor.shape.size() >= 2 && is_quantized(tensor) &&
           target_of(tensor.name)->suffix == "weight";
  }

  void add_values(const GgufParts::Entry& entry) {
    const GgufTensor& tensor = *entry.tensor;
    Target target = *target_of(tensor.name);
    const std::vector<int> rows = source_rows(entry);
    std::string name = target.module + "." + std::string(target.suffix);
    // A list of one value per row has as many rows as values.
    bool is_list = tensor.shape.size() == 1;
    auto values =
        dense_tensor(*entry.file, tensor, is_list ? std::vector<int>{} : rows);
    if (is_list && !rows.empty()) {
      values = mx::take(
          values,
          mx::array(rows.begin(), {static_cast<int>(rows.size())}, mx::int32),
          0);
    }
    if (target.change == GgufChange::plus_one) {
      values = mx::subtract(mx::astype(values, mx::float32), mx::array(1.0f));
    }
    if (target.change == GgufChange::flattened && is_list) {
      values = mx::expand_dims(values, 0);
    }
    checkpoint_.weights.insert_or_assign(name, std::move(values));
  }

  void add_matrix(const GgufParts::Entry& entry, GgufMatrix matrix) {
    const std::string module = target_of(entry.tensor->name)->module;
    auto& weights = checkpoint_.weights;
    weights.insert_or_assign(module + ".weight", std::move(matrix.weight));
    weights.insert_or_assign(module + ".scales", std::move(matrix.scales));
    weights.insert_or_assign(module + ".biases", std::move(matrix.biases));
    checkpoint_.quantized.emplace(module, matrix.quantization);
    if (matrix.loss.squared_error > 0) {
      auto& [count, loss] = losses_[entry.tensor->type->name];
      ++count;
      loss.add(matrix.loss);
    }
  }

  void report_losses(const std::string& file_name) const {
    for (const auto& [type, counted] : losses_) {
      char text[160];
      std::snprintf(text,
                    sizeof(text),
                    ": %d tensors of type %.*s were converted to 8 bits; "
                    "relative error %.2g, at most %.2g of a group's largest "
                    "value",
                    counted.count,
                    static_cast<int>(type.size()),
                    type.data(),
                    counted.loss.relative(),
                    counted.loss.largest);
      log_info(file_name + text);
    }
  }

  struct CountedLoss {
    int count = 0;
    GgufLoss loss;
  };

  const GgufParts& parts_;
  const LoadOptions& options_;
  const GgufArchitecture& architecture_;
  int num_layers_ = 0;
  Checkpoint checkpoint_;
  std::map<std::string_view, CountedLoss> losses_;
};

}  // namespace

Checkpoint load_gguf_checkpoint(const std::filesystem::path& path,
                                const LoadOptions& options) {
  GgufParts parts(path);
  return Converter(parts, options).convert();
}

}  // namespace mlxlm

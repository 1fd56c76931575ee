#include "load/folder.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <mlxlm/error.h>

#include "core/checked.h"
#include "core/file.h"
#include "core/json.h"
#include "load/config.h"
#include "load/foreign.h"
#include "load/memory.h"
#include "load/quantization.h"
#include "load/safetensors.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;

// A folder without config.json: what the user may have meant.
[[noreturn]] void refuse_without_config(const fs::path& folder) {
  std::string advice;
  std::error_code ignored;
  for (fs::directory_iterator it(folder, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    if (it->path().extension() == ".gguf") {
      advice = "; it holds " + it->path().filename().string() +
               ": name that file instead of the folder";
      break;
    }
    if (file_exists(it->path() / "config.json")) {
      advice = "; did you mean " + it->path().string() + "?";
    }
  }
  if (advice.empty() && file_exists(folder / "adapter_config.json")) {
    advice =
        "; it is an adapter: name it as the adapter path, beside the model";
  }
  throw Error(ErrorKind::file,
              folder.string() +
                  " has no config.json, so it is no model "
                  "folder" +
                  advice);
}

void refuse_unsupported(const nlohmann::json& config) {
  ConfigReader reader(config);
  if (auto file = reader.find("model_file")) {
    throw Error(ErrorKind::unsupported,
                "the model brings its own Python code (config.json: "
                "model_file is " +
                    dumped(*file) + "), which can't run here");
  }
  if (reader.get_bool("quantize_activations", false)) {
    throw Error(ErrorKind::unsupported,
                "quantized activations (config.json: quantize_activations) "
                "aren't supported; set the field to false to run with "
                "floating-point activations");
  }
}

struct File {
  fs::path path;
  SafetensorsHeader header;
};

// Checks every header and that no tensor is in two files.
std::vector<File> read_headers(const std::vector<fs::path>& paths) {
  std::vector<File> files;
  std::map<std::string, const fs::path*> owners;
  for (const fs::path& path : paths) {
    files.push_back({path, read_safetensors_header(path)});
    for (const SafetensorsTensor& tensor : files.back().header.tensors) {
      auto [owner, is_new] = owners.emplace(tensor.name, &path);
      if (!is_new) {
        throw Error(ErrorKind::weights,
                    "tensor \"" + tensor.name + "\" is in both " +
                        owner->second->filename().string() + " and " +
                        path.filename().string() + " of " +
                        path.parent_path().string() +
                        "; remove the file that isn't part of the model");
      }
    }
  }
  return files;
}

std::uint64_t total_bytes(const std::vector<File>& files) {
  std::uint64_t total = 0;
  for (const File& file : files) {
    total = checked_add(total, file.header.data_bytes).value_or(~0ull);
  }
  return total;
}

std::uint64_t total_bytes(const Weights& weights) {
  std::uint64_t total = 0;
  for (const auto& [name, value] : weights) {
    total = checked_add(total, std::uint64_t{value.nbytes()}).value_or(~0ull);
  }
  return total;
}

}  // namespace

Checkpoint load_folder_config(const fs::path& folder,
                              const LoadOptions& options) {
  if (!file_exists(folder / "config.json")) {
    refuse_without_config(folder);
  }
  ModelConfig loaded = load_config(folder);
  merge_config_overrides(loaded.config, options.config_overrides);
  refuse_unsupported(loaded.config);
  Checkpoint out;
  out.config = std::move(loaded.config);
  out.generation_config = std::move(loaded.generation_config);
  out.source = folder.string();
  return out;
}

Checkpoint load_folder_checkpoint(const fs::path& folder,
                                  const LoadOptions& options) {
  Checkpoint out = load_folder_config(folder, options);
  std::vector<File> files =
      read_headers(find_weight_files(folder, options.strict));
  std::set<std::string> fp8;
  for (const File& file : files) {
    for (const SafetensorsTensor& tensor : file.header.tensors) {
      if (tensor.dtype == "F8_E4M3") {
        fp8.insert(tensor.name);
      }
    }
    out.weights.merge(load_safetensors(file.path, file.header));
  }
  convert_foreign_weights(out.config, folder, fp8, out.weights);
  if (!options.lazy) {
    // Nothing has been read yet, and conversions may make more of it.
    require_loading_memory(
        std::max(total_bytes(files), total_bytes(out.weights)),
        folder.string());
  }
  out.quantized =
      match_quantization(read_quantization_map(out.config), out.weights);
  return out;
}

}  // namespace mlxlm

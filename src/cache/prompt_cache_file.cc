// save_prompt_cache and load_prompt_cache: the safetensors files of mlx-lm
// 0.32.2.
//
// Tensors are the leaves of the layers' states. Numbers, texts and None are
// tensors, too (a scalar, code points, an empty array), and named in the
// metadata: "0.KEY" the caller's metadata, "1.LAYER" class names, "2.0" an
// empty text, "2.I.0" and "2.I.1" the I-th such leaf and what it is.
#include <limits>
#include <unordered_map>

#include <mlx/mlx.h>

#include <mlxlm/cache.h>
#include <mlxlm/error.h>

#include "cache/attention_cache.h"
#include "cache/cache_list.h"
#include "cache/cache_tensors.h"
#include "cache/kinds.h"
#include "cache/state_tree.h"
#include "core/file.h"
#include "load/safetensors_writer.h"

namespace mlxlm {
namespace {

constexpr int kMaxTextLength = 64;

// A leaf as a tensor, and what it stands for ("" for itself).
std::pair<mx::array, std::string> tensor_of(const CacheState& leaf) {
  if (auto* array = std::get_if<mx::array>(&leaf.value)) {
    return {*array, ""};
  }
  if (auto* number = std::get_if<int>(&leaf.value)) {
    return {mx::array(*number), "scalar"};
  }
  if (auto* text = std::get_if<std::string>(&leaf.value)) {
    std::vector<int> codes(text->begin(), text->end());
    return {mx::array(codes.data(), {static_cast<int>(codes.size())}),
            "string"};
  }
  return {mx::zeros({0}, mx::float32), "none"};
}

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(ErrorKind::format,
              path + " is not a prompt cache of mlx-lm 0.32: " + what);
}

int number_in(const mx::array& tensor, const std::string& name) {
  if (tensor.ndim() != 0 || !mx::issubdtype(tensor.dtype(), mx::integer)) {
    throw Error(ErrorKind::format,
                "unusable prompt cache: '" + name + "' is not a whole number");
  }
  auto value = mx::astype(tensor, mx::int64).item<std::int64_t>();
  if (value < std::numeric_limits<int>::min() ||
      value > std::numeric_limits<int>::max()) {
    throw Error(ErrorKind::format,
                "unusable prompt cache: '" + name + "' is too large a number");
  }
  return static_cast<int>(value);
}

std::string text_in(const mx::array& tensor, const std::string& name) {
  std::string text;
  bool usable = tensor.ndim() == 1 && tensor.size() <= kMaxTextLength &&
                tensor.dtype() == mx::int32;
  if (usable) {
    auto codes = mx::contiguous(tensor);
    codes.eval();
    for (std::size_t i = 0; i < codes.size(); ++i) {
      int code = codes.data<int>()[i];
      usable = usable && code >= 0x20 && code < 0x7f;
      text += static_cast<char>(code);
    }
  }
  if (!usable) {
    throw Error(ErrorKind::format,
                "unusable prompt cache: '" + name + "' is not a short text");
  }
  return text;
}

CacheState leaf_of(const mx::array& tensor,
                   const std::string& name,
                   const std::string& meaning) {
  if (meaning.empty()) {
    return {tensor};
  }
  if (meaning == "scalar") {
    return {number_in(tensor, name)};
  }
  if (meaning == "string") {
    return {text_in(tensor, name)};
  }
  if (meaning == "none") {
    return {};
  }
  throw Error(ErrorKind::format,
              "unusable prompt cache: '" + name + "' has an unknown type");
}

// What the metadata of a file says.
struct Contents {
  CacheMetadata metadata;
  std::vector<std::string> class_names;
  // leaf -> "scalar", "string" or "none"
  std::unordered_map<std::string, std::string> meanings;
};

Contents read_metadata(const std::string& path, const CacheMetadata& entries) {
  Contents contents;
  auto entry = [&](const std::string& key) -> const std::string* {
    auto found = entries.find(key);
    return found == entries.end() ? nullptr : &found->second;
  };
  if (entry("2.0") == nullptr) {
    fail(path, "its metadata has no entry \"2.0\"");
  }
  std::size_t known = 1;
  for (const auto& [key, value] : entries) {
    if (key.starts_with("0.")) {
      contents.metadata[key.substr(2)] = value;
      ++known;
    }
  }
  for (int i = 0; auto* name = entry("1." + std::to_string(i)); ++i) {
    check_cache_class(*name);
    contents.class_names.push_back(*name);
    ++known;
  }
  for (int i = 1; auto* leaf = entry("2." + std::to_string(i) + ".0"); ++i) {
    auto* meaning = entry("2." + std::to_string(i) + ".1");
    if (meaning == nullptr ||
        !contents.meanings.emplace(*leaf, *meaning).second) {
      fail(path, "its metadata entry 2." + std::to_string(i) + " is unusable");
    }
    known += 2;
  }
  if (known != entries.size()) {
    fail(path, "its metadata has entries of another kind");
  }
  return contents;
}

std::vector<CacheState> read_states(const Weights& tensors,
                                    const Contents& contents) {
  std::vector<std::pair<std::string, CacheState>> leaves;
  std::size_t named = 0;
  for (const auto& [name, tensor] : tensors) {
    auto meaning = contents.meanings.find(name);
    bool special = meaning != contents.meanings.end();
    named += special ? 1 : 0;
    leaves.emplace_back(name,
                        leaf_of(tensor, name, special ? meaning->second : ""));
  }
  if (named != contents.meanings.size()) {
    throw Error(ErrorKind::format,
                "unusable prompt cache: its metadata names tensors that it "
                "doesn't have");
  }
  return unflatten_states(std::move(leaves));
}

// Which tensors are those of the layers that grow.
std::vector<GrowingTensors> growing_tensors(const Contents& contents) {
  std::vector<GrowingTensors> growing;
  for (std::size_t i = 0; i < contents.class_names.size(); ++i) {
    const std::string layer = std::to_string(i);
    if (contents.class_names[i] == "KVCache") {
      growing.push_back({{layer + ".0", layer + ".1"}, {}, layer + ".2"});
    } else if (contents.class_names[i] == "QuantizedKVCache") {
      growing.push_back(
          {{layer + ".0.0", layer + ".1.0"},
           {layer + ".0.1", layer + ".0.2", layer + ".1.1", layer + ".1.2"},
           layer + ".2"});
    }
  }
  return growing;
}

// What was read from the file is nobody else's.
void claim_rows(const Cache& cache) {
  if (auto* list = dynamic_cast<const CacheList*>(&cache)) {
    for (std::size_t i = 0; i < list->count(); ++i) {
      claim_rows(*(*list)[i]);
    }
  } else if (auto* attention = dynamic_cast<const AttentionCache*>(&cache)) {
    attention->rows().claim();
  }
}

}  // namespace

void save_prompt_cache(const std::string& path,
                       const PromptCache& cache,
                       const CacheMetadata& metadata) {
  std::vector<CacheState> states;
  std::map<std::string, std::string> entries{{"2.0", ""}};
  for (const auto& [key, value] : metadata) {
    entries.emplace("0." + key, value);
  }
  for (std::size_t i = 0; i < cache.size(); ++i) {
    states.push_back(cache[i]->state());
    entries.emplace("1." + std::to_string(i), cache[i]->kind());
  }
  std::vector<std::pair<std::string, mx::array>> tensors;
  int num_special = 0;
  for (const auto& [name, leaf] : flatten_states(states)) {
    auto [tensor, meaning] = tensor_of(leaf);
    tensors.emplace_back(name, tensor);
    if (!meaning.empty()) {
      std::string key = "2." + std::to_string(++num_special);
      entries.emplace(key + ".0", name);
      entries.emplace(key + ".1", meaning);
    }
  }
  write_file_atomically(path, [&](const std::filesystem::path& temporary) {
    try {
      write_safetensors(temporary, tensors, entries);
    } catch (const Error& error) {
      throw Error(error.kind(), "prompt cache " + path + ": " + error.what());
    }
  });
}

std::pair<PromptCache, CacheMetadata> load_prompt_cache(
    const std::string& path) {
  SafetensorsHeader header = read_safetensors_header(path);
  Contents contents = read_metadata(path, header.metadata);
  auto states = read_states(
      read_cache_tensors(path, header, growing_tensors(contents)), contents);
  if (states.size() != contents.class_names.size()) {
    fail(path,
         "it has " + std::to_string(states.size()) + " states for " +
             std::to_string(contents.class_names.size()) + " classes");
  }
  PromptCache cache;
  for (std::size_t i = 0; i < states.size(); ++i) {
    try {
      cache.push_back(cache_from_state(contents.class_names[i], states[i]));
      claim_rows(*cache.back());
    } catch (const Error& error) {
      throw Error(error.kind(),
                  path + ", layer " + std::to_string(i) + ": " + error.what());
    }
  }
  return {std::move(cache), std::move(contents.metadata)};
}

}  // namespace mlxlm

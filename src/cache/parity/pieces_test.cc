// Replays the operations that the oracle recorded on the reference's caches:
// MLXLM_PARITY_PIECES names the folder that `oracle.py pieces` made.
#include <cstdlib>
#include <fstream>
#include <set>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/cache_test_support.h"
#include "cache/chunked_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using Tensors = std::unordered_map<std::string, mx::array>;

std::string pieces_folder() {
  const char* folder = std::getenv("MLXLM_PARITY_PIECES");
  return folder == nullptr ? "" : folder;
}

json read_json(const std::string& path) {
  std::ifstream in(path);
  return json::parse(in);
}

// Arrays or None that a cache holds, in the order of the oracle's probe.
using Held = std::vector<std::optional<mx::array>>;

void append(Held& held, const KeysAndValues& rows) {
  for (const Rows* part : {&rows.keys, &rows.values}) {
    held.insert(held.end(), part->arrays().begin(), part->arrays().end());
  }
}

Held held_by(const Cache& cache) {
  Held held;
  if (auto* kv = dynamic_cast<const KVCache*>(&cache)) {
    append(held, kv->keys_and_values());
  } else if (auto* r = dynamic_cast<const RotatingKVCache*>(&cache)) {
    append(held, r->keys_and_values());
  } else if (auto* a = dynamic_cast<const ArraysCache*>(&cache)) {
    auto state = std::get<CacheState::List>(a->state().value);
    auto arrays = std::get<CacheState::List>(state[0].value);
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      held.push_back((*a)[i]);
    }
  } else if (auto* c = dynamic_cast<const ChunkedKVCache*>(&cache)) {
    append(held, c->keys_and_values());
  }
  return held;
}

class Replay {
 public:
  explicit Replay(Tensors tensors) : tensors_(std::move(tensors)) {}

  // False where the case uses batched caches, which are not built yet.
  bool run(const std::string& name, const json& steps) {
    for (std::size_t i = 0; i < steps.size(); ++i) {
      SCOPED_TRACE(name + " step " + std::to_string(i));
      const json& step = steps[i];
      if (!apply(name, step)) {
        return false;
      }
      probe(*caches_[name], step["probe"]);
      if (::testing::Test::HasFailure()) {
        return true;
      }
    }
    return true;
  }

  void probe(const Cache& cache, const json& expected) {
    ASSERT_EQ(cache.kind(), expected["class"].get<std::string>());
    if (auto* list = dynamic_cast<const CacheList*>(&cache)) {
      ASSERT_EQ(list->count(), expected["caches"].size());
      for (std::size_t i = 0; i < list->count(); ++i) {
        probe(*(*list)[i], expected["caches"][i]);
      }
      return;
    }
    if (expected.contains("offset")) {
      EXPECT_EQ(cache.offset(), expected["offset"]);
    }
    EXPECT_EQ(cache.empty(), expected["empty"].get<bool>());
    EXPECT_EQ(cache.is_trimmable(), expected["trimmable"].get<bool>());
    // The reference's quantized and chunked caches don't count theirs.
    if (expected["size"] != 0) {
      EXPECT_EQ(cache.size(), expected["size"]);
    }
    if (auto* r = dynamic_cast<const RotatingKVCache*>(&cache)) {
      EXPECT_EQ(r->index(), expected["_idx"]);
      EXPECT_EQ(r->keep(), expected["keep"]);
      EXPECT_EQ(r->max_size(), expected["max_size"]);
    }
    if (auto* c = dynamic_cast<const ChunkedKVCache*>(&cache)) {
      EXPECT_EQ(c->start_position(), expected["start_position"]);
    }
    if (expected.contains("held")) {
      EXPECT_EQ(cache.nbytes(), expected["nbytes"]);
      expect_arrays(held_by(cache), expected["held"]);
    }
  }

 private:
  mx::array tensor(const json& reference) {
    return tensors_.at(reference["tensor"].get<std::string>());
  }

  void expect_arrays(const Held& actual, const json& expected) {
    std::vector<json> names;
    for (const json& item : expected) {
      if (item.is_array()) {
        names.insert(names.end(), item.begin(), item.end());
      } else {
        names.push_back(item);
      }
    }
    ASSERT_EQ(actual.size(), names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      ASSERT_EQ(actual[i].has_value(), !names[i].is_null()) << i;
      if (actual[i]) {
        EXPECT_TRUE(same(*actual[i], tensor(names[i]))) << names[i];
      }
    }
  }

  CachePtr make(const std::string& kind, const json& args, const json& named) {
    if (kind == "KVCache") {
      return make_kv_cache();
    }
    if (kind == "RotatingKVCache") {
      return make_rotating_cache(args[0], named.value("keep", 0));
    }
    if (kind == "QuantizedKVCache") {
      return make_quantized_cache(
          bits(named["bits"], named["group_size"].get<int>()));
    }
    if (kind == "ChunkedKVCache") {
      return make_chunked_cache(args[0]);
    }
    if (kind == "ArraysCache") {
      return make_arrays_cache(args[0],
                               args.size() > 1 ? args[1].get<std::vector<int>>()
                                               : std::vector<int>{});
    }
    if (kind == "CacheList") {
      std::vector<CachePtr> parts;
      for (const json& part : args) {
        parts.push_back(make(part[0], part[1], json::object()));
      }
      return make_cache_list(std::move(parts));
    }
    return nullptr;
  }

  void expect_mask(const std::optional<Mask>& mask, const json& step) {
    json expected;
    if (step.contains("result")) {
      expected = step["result"];
    }
    if (expected.is_null()) {
      EXPECT_TRUE(!mask || (!mask->causal && !mask->array));
    } else if (expected == "causal") {
      EXPECT_TRUE(mask && mask->causal && !mask->array);
    } else {
      ASSERT_TRUE(mask && mask->array);
      EXPECT_TRUE(same(*mask->array, tensor(expected)));
    }
  }

  void make_mask(const Cache& cache, const json& step) {
    int count = step["N"];
    int window = step.contains("window_size") && !step["window_size"].is_null()
                     ? step["window_size"].get<int>()
                     : 0;
    bool as_array = step.value("return_array", false);
    if (auto* a = dynamic_cast<const AttentionCache*>(&cache)) {
      expect_mask(a->make_mask(count, window, as_array), step);
    } else if (auto* s = dynamic_cast<const ArraysCache*>(&cache)) {
      auto mask = s->make_mask(count);
      expect_mask(mask ? std::optional(Mask::of(*mask)) : std::nullopt, step);
    }
  }

  void update(Cache& cache, const json& step) {
    auto keys = tensor(step["keys"]);
    auto values = tensor(step["values"]);
    Held result;
    append(result, dynamic_cast<AttentionCache&>(cache).update(keys, values));
    expect_arrays(result, step["result"]);
  }

  bool apply(const std::string& name, const json& step) {
    std::string op = step["op"];
    if (op == "new") {
      caches_[name] = make(step["class"], step["args"], step["kwargs"]);
      return caches_[name] != nullptr;
    }
    if (op == "to_quantized") {
      caches_[name] =
          caches_.at(step["of"])
              ->to_quantized(bits(step["bits"], step["group_size"].get<int>()));
      return true;
    }
    if (op == "merge" || op == "extract") {
      return false;
    }
    CachePtr cache = caches_.at(name);
    if (step.contains("at")) {
      cache = dynamic_cast<CacheList&>(*cache)[step["at"].get<std::size_t>()];
    }
    if (op == "update") {
      update(*cache, step);
    } else if (op == "make_mask") {
      make_mask(*cache, step);
    } else if (op == "trim") {
      EXPECT_EQ(cache->trim(step["args"][0]), step["result"]);
    } else if (op == "maybe_trim_front") {
      dynamic_cast<ChunkedKVCache&>(*cache).trim_front();
    } else if (op == "set") {
      dynamic_cast<ArraysCache&>(*cache).set(step["index"],
                                             tensor(step["value"]));
    } else if (op == "advance") {
      dynamic_cast<ArraysCache&>(*cache).advance(step["args"][0]);
    } else {
      ADD_FAILURE() << "unknown operation " << op;
    }
    return true;
  }

  Tensors tensors_;
  std::map<std::string, CachePtr> caches_;
};

TEST(CacheParity, OperationsGiveTheReferencesResults) {
  std::string folder = pieces_folder();
  if (folder.empty()) {
    GTEST_SKIP() << "MLXLM_PARITY_PIECES is not set";
  }
  Replay replay(mx::load_safetensors(folder + "/caches.safetensors").first);
  std::set<std::string> done;
  json cases = read_json(folder + "/caches.json");
  for (const auto& [name, steps] : cases.items()) {
    if (replay.run(name, steps)) {
      done.insert(name);
    }
  }
  for (const char* name : {"kv",
                           "kv_grow",
                           "quant4_32",
                           "quant8_32",
                           "quant8_64",
                           "quant2_32",
                           "kv_to_quant",
                           "rot_keep0",
                           "rot_keep2",
                           "chunked",
                           "arrays",
                           "arrays_left",
                           "list",
                           "list_arrays"}) {
    EXPECT_TRUE(done.contains(name)) << name << " was not replayed";
  }
}

TEST(CacheParity, ReadsTheReferencesFilesAndWritesThemAgain) {
  std::string folder = pieces_folder();
  if (folder.empty()) {
    GTEST_SKIP() << "MLXLM_PARITY_PIECES is not set";
  }
  Replay replay(
      mx::load_safetensors(folder + "/cache_files_held.safetensors").first);
  json files = read_json(folder + "/cache_files.json")["files"];
  TemporaryFolder temporary;
  for (const auto& [name, expected] : files.items()) {
    SCOPED_TRACE(name);
    std::string path = folder + "/cache_files/" + name + ".safetensors";
    if (name.starts_with("batch")) {
      expect_error(ErrorKind::format, "unknown kind of cache 'Batch", [&] {
        load_prompt_cache(path);
      });
      continue;
    }
    auto [cache, metadata] = load_prompt_cache(path);
    EXPECT_EQ(json(metadata), expected["metadata"]);
    ASSERT_EQ(cache.size(), expected["layers"].size());
    for (std::size_t i = 0; i < cache.size(); ++i) {
      replay.probe(*cache[i], expected["layers"][i]);
    }
    std::string copy = temporary / (name + ".safetensors");
    save_prompt_cache(copy, cache, metadata);
    auto [tensors, entries] = mx::load_safetensors(path);
    auto [copied, copied_entries] = mx::load_safetensors(copy);
    EXPECT_EQ(copied_entries, entries);
    ASSERT_EQ(copied.size(), tensors.size());
    for (const auto& [key, tensor] : tensors) {
      EXPECT_TRUE(same(copied.at(key), tensor)) << key;
    }
  }
}

}  // namespace
}  // namespace mlxlm

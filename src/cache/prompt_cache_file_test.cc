#include <csignal>
#include <filesystem>
#include <functional>
#include <iterator>

#include <mlx/mlx.h>
#include <sys/resource.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/cache_test_support.h"
#include "cache/chunked_cache.h"
#include "cache/concatenate_cache.h"
#include "cache/kinds.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"
#include "cache/state_tree.h"
#include "core/file.h"
#include "load/safetensors_header.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using Tensors = std::unordered_map<std::string, mx::array>;
using Entries = std::unordered_map<std::string, std::string>;

// Every kind, with content.
PromptCache all_kinds(const Sequence& s) {
  auto arrays = std::make_shared<ArraysCache>(2, std::vector<int>{1});
  arrays->set(0, seeded_rows(2, 9));
  PromptCache cache{make_kv_cache(),
                    make_rotating_cache(8, 2),
                    make_quantized_cache(bits(4)),
                    make_concatenate_cache(),
                    make_chunked_cache(4),
                    make_quantized_cache({8, 3, 32}),
                    make_rotating_cache(8, 2, bits(4)),
                    make_rotating_cache(8, 0, KvQuantization{4, 6, 32}),
                    make_chunked_cache(4, bits(8)),
                    arrays,
                    make_cache_list({make_kv_cache(), make_rotating_cache(4)})};
  for (auto& layer : cache) {
    if (auto* list = dynamic_cast<CacheList*>(layer.get())) {
      s.attend(*(*list)[0], 0, 11);
      s.attend(*(*list)[1], 0, 11);
    } else if (layer->kind() != "ArraysCache") {
      s.attend(*layer, 0, 11);
    }
  }
  // A cache without content, too.
  cache.push_back(make_kv_cache());
  cache.push_back(make_quantized_cache(bits(4)));
  return cache;
}

void expect_same_state(const CacheState& a, const CacheState& b) {
  auto one = flatten_states({a});
  auto other = flatten_states({b});
  ASSERT_EQ(one.size(), other.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].first, other[i].first);
    const auto& x = one[i].second.value;
    const auto& y = other[i].second.value;
    ASSERT_EQ(x.index(), y.index()) << one[i].first;
    if (auto* array = std::get_if<mx::array>(&x)) {
      EXPECT_TRUE(same(*array, std::get<mx::array>(y))) << one[i].first;
    } else if (auto* number = std::get_if<int>(&x)) {
      EXPECT_EQ(*number, std::get<int>(y)) << one[i].first;
    }
  }
}

TEST(PromptCacheFile, DataIsAlignedForMapping) {
  TemporaryFolder folder;
  for (const char* note : {"", "a", "ab", "abc"}) {
    std::string path = folder / "kv.safetensors";
    save_prompt_cache(path, all_kinds(Sequence(20, 32)), {{"note", note}});
    SafetensorsHeader header = read_safetensors_header(path);
    EXPECT_EQ(header.data_start % 4096, 0u);
    ASSERT_FALSE(header.tensors.empty());
    // The buffers of 256 rows.
    EXPECT_EQ(header.tensors[0].end % 4096, 0u);
    EXPECT_GT(header.tensors[0].end, 0u);
  }
}

TEST(PromptCacheFile, RoundTripOfEveryKind) {
  TemporaryFolder folder;
  Sequence s(20, 32);
  PromptCache cache = all_kinds(s);
  std::string path = folder / "cache with spaces";
  CacheMetadata metadata{{"model", "a/b"}, {"note.x", "naïve ☃"}, {"7", ""}};
  save_prompt_cache(path, cache, metadata);
  auto [again, read] = load_prompt_cache(path);
  EXPECT_EQ(read, metadata);
  ASSERT_EQ(again.size(), cache.size());
  for (std::size_t i = 0; i < cache.size(); ++i) {
    SCOPED_TRACE(cache[i]->kind());
    EXPECT_EQ(again[i]->kind(), cache[i]->kind());
    EXPECT_EQ(again[i]->offset(), cache[i]->offset());
    EXPECT_EQ(again[i]->size(), cache[i]->size());
    EXPECT_EQ(again[i]->empty(), cache[i]->empty());
    expect_same_state(again[i]->state(), cache[i]->state());
    if (i < 9) {
      EXPECT_TRUE(same(s.attend(*again[i], 11, 3), s.attend(*cache[i], 11, 3)));
    }
  }
}

TEST(PromptCacheFile, EmptyListAndOtherNumberFormats) {
  TemporaryFolder folder;
  std::string path = folder / "empty.safetensors";
  save_prompt_cache(path, {});
  auto [cache, metadata] = load_prompt_cache(path);
  EXPECT_TRUE(cache.empty());
  EXPECT_TRUE(metadata.empty());
  KVCache half;
  half.update(mx::astype(seeded_rows(3, 1), mx::bfloat16),
              mx::astype(seeded_rows(3, 2), mx::bfloat16));
  save_prompt_cache(path, {std::make_shared<KVCache>(half)});
  expect_same_state(load_prompt_cache(path).first[0]->state(), half.state());
}

TEST(PromptCacheFile, LayoutIsTheReferences) {
  TemporaryFolder folder;
  std::string path = folder / "kv.safetensors";
  Sequence s(6);
  auto kv = make_kv_cache();
  s.attend(*kv, 0, 6);
  save_prompt_cache(
      path, {kv, make_cache_list({make_kv_cache()})}, {{"model", "m"}});
  auto [tensors, entries] = mx::load_safetensors(path);
  EXPECT_EQ(entries,
            (Entries{{"0.model", "m"},
                     {"1.0", "KVCache"},
                     {"1.1", "CacheList"},
                     {"2.0", ""},
                     {"2.1.0", "0.2"},
                     {"2.1.1", "scalar"},
                     {"2.2.0", "1.0.0.0"},
                     {"2.2.1", "none"},
                     {"2.3.0", "1.0.0.1"},
                     {"2.3.1", "none"},
                     {"2.4.0", "1.0.0.2"},
                     {"2.4.1", "scalar"},
                     {"2.5.0", "1.0.1"},
                     {"2.5.1", "string"}}));
  EXPECT_EQ(tensors.at("0.0").shape(), (mx::Shape{1, 2, 256, 8}));
  EXPECT_EQ(tensors.at("0.2").dtype(), mx::int32);
  EXPECT_EQ(tensors.at("0.2").item<int>(), 6);
  EXPECT_EQ(tensors.at("1.0.0.0").shape(), (mx::Shape{0}));
  EXPECT_EQ(tensors.at("1.0.1").shape(), (mx::Shape{7}));
}

TEST(PromptCacheFile, FailedWriteLeavesTheOldFile) {
  TemporaryFolder folder;
  std::string path = folder / "kv.safetensors";
  save_prompt_cache(path, {make_kv_cache()});
  std::string before = read_file(path);
  expect_error(ErrorKind::file, "nowhere", [&] {
    save_prompt_cache(folder / "nowhere/kv.safetensors", {make_kv_cache()});
  });
  EXPECT_EQ(read_file(path), before);
  expect_error(ErrorKind::file, "absent", [&] {
    load_prompt_cache(folder / "absent.safetensors");
  });
}

// Lets no file grow beyond this many bytes, as a full disk would.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t num_bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit{num_bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, SIG_DFL);
  }

 private:
  rlimit before_{};
};

TEST(PromptCacheFile, AFullDiskLeavesTheOldFile) {
  TemporaryFolder folder;
  std::string path = folder / "kv.safetensors";
  save_prompt_cache(path, {make_kv_cache()});
  std::string before = read_file(path);
  Sequence s(6, 32);
  auto kv = make_kv_cache();
  s.attend(*kv, 0, 6);
  {
    FileSizeLimit limit(10000);
    expect_error(ErrorKind::file, "cannot write", [&] {
      save_prompt_cache(path, {kv});
    });
  }
  EXPECT_EQ(read_file(path), before);
  // Nor is anything left beside it.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()),
                          std::filesystem::directory_iterator()),
            1);
}

// Large tensors are mapped: reading on changes neither the file nor what was
// read from it, and the file may be replaced or removed.
TEST(PromptCacheFile, LargeFilesAreMappedAndStayAsTheyAre) {
  TemporaryFolder folder;
  std::string path = folder / "kv.safetensors";
  auto rows = [](int count, int seed) {
    return seeded_rows(count, seed, 256, 8);
  };
  PromptCache cache{make_kv_cache(), make_rotating_cache(300)};
  for (auto& layer : cache) {
    layer->attend(rows(200, 1), rows(200, 2), rows(200, 3), {.scale = 0.1f});
  }
  save_prompt_cache(path, cache);
  std::string before = read_file(path);
  auto loaded = load_prompt_cache(path).first;
  auto again = load_prompt_cache(path).first;
  auto read = [&](PromptCache& to) {
    std::vector<mx::array> out;
    for (auto& layer : to) {
      for (int count : {1, 1, 3, 1}) {
        out.push_back(layer->attend(
            rows(count, 4), rows(count, 5), rows(count, 6), {.scale = 0.1f}));
        out.back().eval();
      }
    }
    return out;
  };
  auto expected = read(cache);
  auto actual = read(loaded);
  EXPECT_EQ(read_file(path), before);
  save_prompt_cache(path, {make_kv_cache()});
  std::filesystem::remove(path);
  auto second = read(again);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(same(actual[i], expected[i])) << i;
    EXPECT_TRUE(same(second[i], expected[i])) << i;
  }
}

// Growing layers of a mapped file get room, so that what is read next is
// written behind it in place; the room is not saved again.
TEST(PromptCacheFile, MappedLayersHaveRoom) {
  TemporaryFolder folder;
  std::string path = folder / "kv.safetensors";
  Sequence s(1024, 512);
  for (bool quantized : {false, true}) {
    SCOPED_TRACE(quantized);
    CachePtr cache =
        quantized ? make_quantized_cache({8, 8, 64}) : make_kv_cache();
    std::vector<std::size_t> sizes;
    dynamic_cast<AttentionCache&>(*cache).update(s.k, s.v);
    evaluate_prompt_cache({cache});
    CachePtr uninterrupted = cache->fork();
    for (int round = 0; round < 2; ++round) {
      save_prompt_cache(path, {cache});
      sizes.push_back(std::filesystem::file_size(path));
      cache = load_prompt_cache(path).first[0];
      const auto& rows = dynamic_cast<const AttentionCache&>(*cache).rows();
      EXPECT_EQ(rows.count(), 2048);
      EXPECT_TRUE(rows.sole());
      auto actual = s.attend(*cache, 0, 3);
      auto expected = s.attend(*uninterrupted, 0, 3);
      EXPECT_TRUE(same(actual, expected));
      EXPECT_EQ(cache->trim(3), 3);
      EXPECT_EQ(uninterrupted->trim(3), 3);
    }
    EXPECT_EQ(sizes[0], sizes[1]);
  }
}

// A good file of two layers, changed by `change`, must be refused.
void expect_refused(const std::string& part,
                    const std::function<void(Tensors&, Entries&)>& change,
                    const PromptCache& good) {
  TemporaryFolder folder;
  std::string path = folder / "bad.safetensors";
  save_prompt_cache(path, good);
  auto [tensors, entries] = mx::load_safetensors(path);
  for (auto& [name, tensor] : tensors) {
    tensor.eval();
  }
  change(tensors, entries);
  std::string bad = folder / "worse.safetensors";
  mx::save_safetensors(bad, tensors, entries);
  SCOPED_TRACE(part);
  expect_error(ErrorKind::format, part, [&] { load_prompt_cache(bad); });
}

TEST(PromptCacheFile, RefusesHostileMetadata) {
  Sequence s(6);
  PromptCache good{make_kv_cache(), make_rotating_cache(4)};
  for (auto& layer : good) {
    s.attend(*layer, 0, 6);
  }
  using T = Tensors&;
  using E = Entries&;
  expect_refused(
      "\"2.0\"", [](T, E e) { e.clear(); }, good);
  expect_refused(
      "of another kind", [](T, E e) { e["3.0"] = "x"; }, good);
  expect_refused(
      "of another kind", [](T, E e) { e["format"] = "pt"; }, good);
  expect_refused(
      "unknown kind of cache 'os'", [](T, E e) { e["1.0"] = "os"; }, good);
  expect_refused(
      "unknown kind of cache 'BatchKVCache'",
      [](T, E e) { e["1.0"] = "BatchKVCache"; },
      good);
  expect_refused(
      "2 states for 1", [](T, E e) { e.erase("1.1"); }, good);
  expect_refused(
      "2 states for 3", [](T, E e) { e["1.2"] = "KVCache"; }, good);
  expect_refused(
      "unusable", [](T, E e) { e.erase("2.1.1"); }, good);
  expect_refused(
      "unknown type", [](T, E e) { e["2.1.1"] = "pickle"; }, good);
  expect_refused(
      "names tensors", [](T, E e) { e["2.1.0"] = "0.9"; }, good);
  expect_refused(
      "not a short text", [](T, E e) { e["2.1.1"] = "string"; }, good);
}

TEST(PromptCacheFile, RefusesHostileTrees) {
  Sequence s(6);
  PromptCache good{make_kv_cache(), make_kv_cache()};
  for (auto& layer : good) {
    s.attend(*layer, 0, 6);
  }
  using T = Tensors&;
  using E = Entries&;
  auto add = [](const std::string& name) {
    return [name](T t, E) { t.emplace(name, mx::ones({2})); };
  };
  expect_refused("not the name", add("x"), good);
  expect_refused("not the name", add("0.-1"), good);
  expect_refused("not the name", add("0.01"), good);
  expect_refused("not the name", add("0."), good);
  expect_refused("not the name", add(""), good);
  expect_refused("not the name", add("99999999999"), good);
  expect_refused("not the name", add("0.0.0.0.0.0.0.0.0"), good);
  expect_refused("is missing", add("9"), good);
  expect_refused("is missing", add("0.2000000000"), good);
  expect_refused("a value and a list", add("0.0.0"), good);
  expect_refused("4 items", add("0.3"), good);
}

TEST(PromptCacheFile, RefusesHostileValues) {
  Sequence s(11, 32);
  PromptCache good{make_kv_cache(),
                   make_rotating_cache(4, 2),
                   make_quantized_cache(bits(4)),
                   make_chunked_cache(4)};
  for (auto& layer : good) {
    s.attend(*layer, 0, 11);
  }
  auto refused = [&](const std::string& part,
                     const std::string& name,
                     const mx::array& value) {
    expect_refused(
        part,
        [&](Tensors& t, Entries&) { t.insert_or_assign(name, value); },
        good);
  };
  auto number = [](int value) { return mx::array(value); };
  refused("outside", "0.2", number(-1));
  refused("outside", "0.2", number(257));
  refused("not a whole number", "0.2", mx::array(1.5f));
  refused("not a whole number", "0.2", mx::array({1, 2}));
  refused("too large", "0.2", mx::array(std::int64_t{1} << 40));
  refused("don't go together", "0.1", mx::zeros({1, 2, 255, 32}));
  refused("of four axes", "0.0", mx::zeros({512}));
  refused("not floating-point", "0.0", mx::zeros({1, 2, 256, 32}, mx::int32));
  refused("outside", "1.4", number(0));
  refused("outside", "1.3", number(4));
  refused("outside", "1.5", number(1000));
  refused("doesn't fit", "1.5", number(1));
  expect_refused(
      "doesn't fit",
      [&](Tensors& t, Entries&) {
        t.insert_or_assign("1.4", number(100));
        t.insert_or_assign("1.2", number(1000));
      },
      good);
  // Fewer tokens than rows, where no row can be spare.
  expect_refused(
      "doesn't fit",
      [&](Tensors& t, Entries&) {
        t.insert_or_assign("1.2", number(2));
        t.insert_or_assign("1.5", number(2));
      },
      good);
  refused("group size is 48", "2.3", number(48));
  refused("number of bits is 1", "2.4", number(1));
  refused("don't fit 8 bits", "2.4", number(8));
  refused("different shapes", "2.0.1", mx::zeros({1, 2, 255, 1}));
  refused("don't fit", "2.0.0", mx::zeros({1, 2, 256, 4}, mx::int32));
  refused("outside", "2.2", number(300));
  refused("outside", "3.4", number(-5));
  refused("outside", "3.3", number(0));
  refused("outside", "3.2", number(1 << 30));
}

TEST(PromptCacheFile, RefusesAListInAList) {
  auto inner = make_cache_list({make_kv_cache()});
  CacheState::List entry{inner->state(), {std::string("CacheList")}};
  CacheState::List list{{entry}};
  expect_error(ErrorKind::format, "another list", [&] {
    cache_from_state("CacheList", {list});
  });
  expect_error(ErrorKind::format, "not a list", [&] {
    cache_from_state("CacheList", {3});
  });
  expect_error(ErrorKind::format, "is empty", [&] {
    cache_from_state("CacheList", {CacheState::List{}});
  });
}

TEST(PromptCacheFile, RefusesBrokenFiles) {
  TemporaryFolder folder;
  std::string path = folder / "kv.safetensors";
  Sequence s(6);
  auto kv = make_kv_cache();
  s.attend(*kv, 0, 6);
  save_prompt_cache(path, {kv});
  std::string content = read_file(path);
  for (std::size_t size : {std::size_t{0},
                           std::size_t{7},
                           std::size_t{100},
                           content.size() / 2,
                           content.size() - 1}) {
    write_file_atomically(path, std::string_view(content).substr(0, size));
    EXPECT_THROW(load_prompt_cache(path), Error) << size;
  }
  std::string huge = content;
  huge.replace(0, 8, "\xff\xff\xff\xff\xff\xff\xff\x7f");
  write_file_atomically(path, huge);
  EXPECT_THROW(load_prompt_cache(path), Error);
  write_file_atomically(path, "not a safetensors file, but long enough");
  EXPECT_THROW(load_prompt_cache(path), Error);
  EXPECT_THROW(load_prompt_cache(folder.path().string()), Error);
}

}  // namespace
}  // namespace mlxlm

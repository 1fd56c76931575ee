#include "cache/kinds.h"

#include <iterator>
#include <string>

#include <mlxlm/error.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/chunked_cache.h"
#include "cache/concatenate_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"

namespace mlxlm {
namespace {

struct Kind {
  std::string_view class_name;
  // With any sizes: set_state() brings the right ones.
  CachePtr (*make)();
};

constexpr Kind kKinds[] = {
    {"KVCache", [] { return make_kv_cache(); }},
    {"RotatingKVCache", [] { return make_rotating_cache(1); }},
    {"QuantizedKVCache", [] { return make_quantized_cache(); }},
    {"ConcatenateKVCache", [] { return make_concatenate_cache(); }},
    {"ChunkedKVCache", [] { return make_chunked_cache(1); }},
    // Those the reference doesn't have.
    {"QuantizedRotatingKVCache",
     [] { return make_rotating_cache(1, 0, KvQuantization()); }},
    {"QuantizedChunkedKVCache",
     [] { return make_chunked_cache(1, KvQuantization()); }},
    {"ArraysCache", [] { return make_arrays_cache(1); }},
    {"CacheList", [] { return make_cache_list({make_kv_cache()}); }},
};

const Kind& kind_named(std::string_view class_name) {
  std::string known;
  for (const Kind& kind : kKinds) {
    if (kind.class_name == class_name) {
      return kind;
    }
    known += (known.empty() ? "" : ", ") + std::string(kind.class_name);
  }
  throw Error(ErrorKind::format,
              "unknown kind of cache '" +
                  std::string(class_name.substr(0, 64)) + "'; known are " +
                  known);
}

}  // namespace

void check_cache_class(std::string_view class_name) { kind_named(class_name); }

CachePtr cache_from_state(std::string_view class_name,
                          const CacheState& state) {
  CachePtr cache = kind_named(class_name).make();
  cache->set_state(state);
  return cache;
}

}  // namespace mlxlm

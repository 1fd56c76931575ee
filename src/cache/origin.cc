// CacheOrigin as entries of a file's metadata.
#include <charconv>

#include <mlx/mlx.h>

#include <mlxlm/cache.h>
#include <mlxlm/error.h>

#include "cache/settle.h"

namespace mlxlm {
namespace {

constexpr char kFormat[] = "mlxlm.format";
constexpr char kTokens[] = "mlxlm.tokens";
constexpr int kVersion = 1;

using Field = std::pair<const char*, std::string CacheOrigin::*>;
constexpr Field kFields[] = {
    {"mlxlm.model_type", &CacheOrigin::model_type},
    {"mlxlm.config", &CacheOrigin::config_hash},
    {"mlxlm.weights", &CacheOrigin::weights_hash},
    {"mlxlm.tokenizer", &CacheOrigin::tokenizer_hash},
    {"mlxlm.template", &CacheOrigin::template_hash},
};

[[noreturn]] void fail(const std::string& what) {
  throw Error(ErrorKind::format, "unusable prompt cache: " + what);
}

std::vector<int> parse_ids(const std::string& text) {
  std::vector<int> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at != end) {
    int id = 0;
    auto [next, error] = std::from_chars(at, end, id);
    at = next;
    bool goes_on = at != end && *at == ',' && at + 1 != end;
    if (error != std::errc() || id < 0 || (at != end && !goes_on)) {
      fail("its metadata entry mlxlm.tokens is not a list of ids");
    }
    ids.push_back(id);
    at += goes_on ? 1 : 0;
  }
  return ids;
}

std::string joined(const std::vector<int>& ids) {
  std::string text;
  for (int id : ids) {
    text += (text.empty() ? "" : ",") + std::to_string(id);
  }
  return text;
}

std::string dtype_of(const PromptCache& cache) {
  for (const mx::array& array : arrays_of(cache)) {
    if (mx::issubdtype(array.dtype(), mx::floating)) {
      return array.dtype() == mx::float32    ? "float32"
             : array.dtype() == mx::bfloat16 ? "bfloat16"
                                             : "float16";
    }
  }
  return "";
}

}  // namespace

std::string describe_layers(const PromptCache& cache) {
  std::string text;
  for (std::size_t from = 0; from < cache.size();) {
    std::size_t to = from;
    while (to < cache.size() && cache[to]->kind() == cache[from]->kind()) {
      ++to;
    }
    text += (text.empty() ? "" : ", ") + std::to_string(to - from) + " " +
            std::string(cache[from]->kind());
    from = to;
  }
  return text;
}

CacheMetadata metadata_of(const CacheOrigin& origin, const PromptCache& cache) {
  CacheMetadata metadata{{kFormat, std::to_string(kVersion)},
                         {"mlxlm.engine", "mlx-lm.cpp " MLXLM_VERSION},
                         {"mlxlm.layers", describe_layers(cache)},
                         {"mlxlm.dtype", dtype_of(cache)}};
  for (const auto& [key, field] : kFields) {
    metadata[key] = origin.*field;
  }
  if (origin.tokens) {
    metadata[kTokens] = joined(*origin.tokens);
  }
  return metadata;
}

std::optional<CacheOrigin> origin_in(const CacheMetadata& metadata) {
  auto format = metadata.find(kFormat);
  if (format == metadata.end()) {
    return std::nullopt;
  }
  if (format->second != std::to_string(kVersion)) {
    fail("its metadata has format " + format->second.substr(0, 16) +
         ", this program knows " + std::to_string(kVersion) +
         "; it was saved by another version");
  }
  CacheOrigin origin;
  for (const auto& [key, field] : kFields) {
    auto found = metadata.find(key);
    if (found != metadata.end()) {
      origin.*field = found->second;
    }
  }
  auto tokens = metadata.find(kTokens);
  if (tokens != metadata.end()) {
    origin.tokens = parse_ids(tokens->second);
  }
  return origin;
}

}  // namespace mlxlm

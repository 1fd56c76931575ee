#include "cache/attention_cache.h"

#include <string>

#include <mlxlm/error.h>

namespace mlxlm {

kernels::AttentionParameters attention_parameters(const AttendSpec& spec,
                                                  const Mask& mask) {
  return {.scale = spec.scale,
          .softcap = spec.softcap,
          .causal = mask.causal,
          .mask = mask.array,
          .sinks = spec.sinks};
}

Mask AttentionCache::make_mask(int num_queries,
                               int window_tokens,
                               bool want_array) const {
  return attention_mask(num_queries, offset(), window_tokens, want_array);
}

mx::array AttentionCache::attend(const mx::array& q,
                                 const mx::array& k,
                                 const mx::array& v,
                                 const AttendSpec& spec) {
  // The mask speaks of what is held before the update.
  Mask mask =
      spec.causal ? make_mask(q.shape(2), spec.window_tokens) : Mask::none();
  auto [keys, values] = update(k, v);
  return kernels::table().attention(
      q, keys, values, attention_parameters(spec, mask));
}

void throw_foreign_checkpoint(std::string_view kind) {
  throw Error(ErrorKind::argument,
              "the checkpoint was not made by a " + std::string(kind));
}

}  // namespace mlxlm

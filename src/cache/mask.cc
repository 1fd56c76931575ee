#include "cache/mask.h"

#include "cache/attention_cache.h"
#include "kernels/seam.h"

namespace mlxlm {

Mask attention_mask(int num_queries,
                    int offset,
                    int window_tokens,
                    bool want_array) {
  if (window_tokens > 0 || (want_array && num_queries > 1)) {
    return Mask::of(kernels::causal_mask(
        num_queries, offset + num_queries, offset, window_tokens));
  }
  return num_queries == 1 ? Mask::none() : Mask::causally();
}

mx::array attend_without_cache(const mx::array& q,
                               const mx::array& k,
                               const mx::array& v,
                               const AttendSpec& spec) {
  int num_queries = q.shape(2);
  Mask mask = Mask::none();
  if (spec.causal) {
    // A window as long as the input hides nothing.
    bool windowed = spec.window_tokens > 0 && num_queries > spec.window_tokens;
    mask = attention_mask(
        num_queries, 0, windowed ? spec.window_tokens : 0, !!spec.visible);
  }
  if (spec.expand) return attend_expanded(q, k, v, spec, mask);
  return kernels::table().attention(q, k, v, attention_parameters(spec, mask));
}

}  // namespace mlxlm

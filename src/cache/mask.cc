#include "cache/mask.h"

#include <mlx/mlx.h>

#include "cache/attention_cache.h"
#include "kernels/seam.h"

namespace mlxlm {

mx::array causal_mask(int num_queries, int offset, int window_tokens) {
  int num_keys = offset + num_queries;
  auto keys = mx::expand_dims(mx::arange(num_keys), 0);
  auto queries = mx::expand_dims(mx::arange(offset, num_keys), 1);
  auto mask = mx::greater_equal(queries, keys);
  if (window_tokens > 0) {
    mask = mx::logical_and(
        mask, mx::less(queries, mx::add(keys, mx::array(window_tokens))));
  }
  return mask;
}

Mask attention_mask(int num_queries,
                    int offset,
                    int window_tokens,
                    bool want_array) {
  if (window_tokens > 0 || (want_array && num_queries > 1)) {
    return Mask::of(causal_mask(num_queries, offset, window_tokens));
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
    mask = attention_mask(num_queries, 0, windowed ? spec.window_tokens : 0);
  }
  return kernels::table().attention(q, k, v, attention_parameters(spec, mask));
}

}  // namespace mlxlm

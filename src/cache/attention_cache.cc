#include "cache/attention_cache.h"

#include <string>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm {

kernels::AttentionParameters attention_parameters(const AttendSpec& spec,
                                                  const Mask& mask) {
  kernels::AttentionParameters parameters{.scale = spec.scale,
                                          .softcap = spec.softcap,
                                          .causal = mask.causal,
                                          .mask = mask.array,
                                          .sinks = spec.sinks};
  if (spec.visible) {
    parameters.mask = mask.array ? mx::logical_and(*mask.array, *spec.visible)
                                 : *spec.visible;
    parameters.causal = false;
  }
  return parameters;
}

mx::array attend_expanded(const mx::array& q,
                          const mx::array& k,
                          const mx::array& v,
                          const AttendSpec& spec,
                          const Mask& mask) {
  auto [keys, values] = spec.expand(k, v);
  return kernels::table().attention(
      q, keys, values, attention_parameters(spec, mask));
}

KeysAndValues empty_rows(const std::optional<KvQuantization>& quantization) {
  if (!quantization) {
    return {};
  }
  RowFormat keys{quantization->key_bits, quantization->group_size};
  RowFormat values{quantization->value_bits, quantization->group_size};
  for (const RowFormat& format : {keys, values}) {
    if (auto fault = fault_of(format)) {
      throw Error(ErrorKind::argument, *fault);
    }
  }
  return {Rows(keys), Rows(values)};
}

std::optional<KvQuantization> quantization_of(const KeysAndValues& rows) {
  const RowFormat& keys = rows.keys.format();
  if (!keys.quantized()) {
    return std::nullopt;
  }
  return KvQuantization{.key_bits = keys.bits,
                        .value_bits = rows.values.format().bits,
                        .group_size = keys.group_size};
}

KeysAndValues quantized_copy(const KeysAndValues& rows,
                             const KvQuantization& quantization) {
  KeysAndValues empty = empty_rows(quantization);
  return rows.empty()
             ? empty
             : empty.encoded(rows.keys.restored(), rows.values.restored());
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
  if (auto place = room_in_place(k, v, k.shape(2), spec)) {
    return attend_in_place(q, k, v, *place, spec);
  }
  // The mask speaks of what is held before the update.
  Mask mask = spec.causal
                  ? make_mask(q.shape(2), spec.window_tokens, !!spec.visible)
                  : Mask::none();
  return attend_to(update(k, v), q, spec, mask);
}

mx::array AttentionCache::attend_to(const KeysAndValues& held,
                                    const mx::array& q,
                                    const AttendSpec& spec,
                                    const Mask& mask) {
  if (spec.expand) {
    return attend_expanded(
        q, held.keys.restored(), held.values.restored(), spec, mask);
  }
  auto parameters = attention_parameters(spec, mask);
  if (held.keys.format().quantized()) {
    return kernels::table().quantized_attention(
        q, held.keys.quantized(), held.values.quantized(), parameters);
  }
  return kernels::table().attention(
      q, held.keys.plain(), held.values.plain(), parameters);
}

mx::array AttentionCache::attend_in_place(const mx::array& q,
                                          const mx::array& k,
                                          const mx::array& v,
                                          const RoomInPlace& place,
                                          const AttendSpec& spec) {
  KeysAndValues& rows = *place.rows;
  auto made = kernels::append_attention(kernels::table(),
                                        q,
                                        k,
                                        v,
                                        rows.keys.plain(),
                                        rows.values.plain(),
                                        place.at,
                                        place.num_keys,
                                        attention_parameters(spec, place.mask));
  rows.keys.changed_to(std::move(made.keys));
  rows.values.changed_to(std::move(made.values));
  return made.out;
}

void throw_foreign_checkpoint(std::string_view kind) {
  throw Error(ErrorKind::argument,
              "the checkpoint was made by another cache than this " +
                  std::string(kind));
}

}  // namespace mlxlm

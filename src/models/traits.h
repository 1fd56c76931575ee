// What a model type's layers are like, for the list of model types.
#pragma once

#include <string>

#include "models/arch_spec.h"

namespace mlxlm {

// Bits; none: attention with growing caches, and an MLP.
using Traits = unsigned;

namespace trait {

inline constexpr Traits experts = 1 << 0;
inline constexpr Traits latent = 1 << 1;   // attention over latents
inline constexpr Traits index = 1 << 2;    // attention to what an indexer chose
inline constexpr Traits windows = 1 << 3;  // some layers see the newest tokens
inline constexpr Traits chunks = 1 << 4;   // some see their chunk of the text
inline constexpr Traits shared = 1 << 5;   // some use others' keys or weights
inline constexpr Traits side = 1 << 6;     // embeddings beside the tokens' own
inline constexpr Traits recurrent = 1 << 7;  // some layers have another mixer
inline constexpr Traits pure = 1 << 8;       // all of them have
// Of the caches:
inline constexpr Traits fixed = 1 << 9;  // --max-kv-size has no effect
inline constexpr Traits rotating = 1
                                   << 10;   // some windows are all that is held
inline constexpr Traits lists = 1 << 11;    // a layer has several
inline constexpr Traits state = 1 << 12;    // some have a fixed size
inline constexpr Traits bounded = 1 << 13;  // none just grows

}  // namespace trait

// Those of one model of the type; others may lack some.
Traits traits_of(const ArchSpec& spec);

// "attention, windows, experts".
std::string layers_text(Traits traits);

// The kinds of caches as Cache::kind() names them, "KVCache, RotatingKVCache".
std::string caches_text(Traits traits);

}  // namespace mlxlm

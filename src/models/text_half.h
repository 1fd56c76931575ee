// The text model within one that also sees or hears.
#pragma once

#include "models/family.h"

namespace mlxlm {

// `make_spec` of the text model's configuration and tensors: those of other
// parts are dropped, and "language_model." before a name or behind "model." is
// taken away. The spec and the checkpoint then have all names below
// "language_model.", as in the reference.
ArchSpec text_half_spec(const ConfigReader& text_config,
                        Checkpoint& checkpoint,
                        MakeSpec make_spec);

// Only that: names as the text model alone has them.
void name_as_text_model(Checkpoint& checkpoint);

// Drops what belongs to seeing and hearing.
void drop_other_senses(Checkpoint& checkpoint);

// Wrappers of the reference that don't pass on which caches the text model
// chooses: every layer then has what max_kv_size asks for.
void choose_no_caches(ArchSpec& spec);

// text_config, or all of config.json where there is none.
ConfigReader text_config_or_all(const ConfigReader& config);

}  // namespace mlxlm

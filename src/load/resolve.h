// From a model's name to the folder or .gguf file it stands for.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <mlxlm/error.h>

#include "load/hub.h"

namespace mlxlm {

// The folder or .gguf file of a model called by its path, by the name of a
// default model, or by its hub id "org/name[@revision]", which is downloaded
// unless the cache has it. `revision` is that of a hub model ("": the name's
// own, else main). Throws Error{argument, file, network, cancelled}.
std::filesystem::path resolve_model(const std::string& name,
                                    const std::string& revision = "",
                                    const ProgressHandler& progress = {});

// The models that scripts/fetch-model brings, and the folder it fills:
// $MLX_LM_MODELS_DIR, else mlx-lm/models in the user's cache folder.
struct DefaultModel {
  std::string name;
  std::string file_name;
};
const std::vector<DefaultModel>& default_models();
std::filesystem::path default_models_folder();

// resolve_model() with all that it would take from the environment.
struct ResolveOptions {
  std::filesystem::path models_folder;
  HubOptions hub;
};
std::filesystem::path resolve_model(const std::string& name,
                                    const std::string& revision,
                                    const ProgressHandler& progress,
                                    const ResolveOptions& options);

}  // namespace mlxlm

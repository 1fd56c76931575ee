#include "load/checkpoint.h"

#include <filesystem>

#include "load/config.h"
#include "load/folder.h"
#include "load/gguf_checkpoint.h"
#include "load/resolve.h"

namespace mlxlm {

Checkpoint load_checkpoint(const std::string& name,
                           const LoadOptions& options) {
  std::filesystem::path path =
      resolve_model(name, options.revision, options.progress);
  if (std::filesystem::is_directory(path)) {
    return load_folder_checkpoint(path, options);
  }
  Checkpoint out = load_gguf_checkpoint(path, options);
  merge_config_overrides(out.config, options.config_overrides);
  return out;
}

}  // namespace mlxlm

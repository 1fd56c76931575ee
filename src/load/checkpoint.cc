#include "load/checkpoint.h"

#include <filesystem>

#include <mlxlm/error.h>

#include "load/folder.h"
#if __has_include("load/gguf_checkpoint.h")
#include "load/gguf_checkpoint.h"
#endif
#include "load/resolve.h"

namespace mlxlm {

Checkpoint load_checkpoint(const std::string& name,
                           const LoadOptions& options) {
  std::filesystem::path path =
      resolve_model(name, options.revision, options.progress);
  if (std::filesystem::is_directory(path)) {
    return load_folder_checkpoint(path, options);
  }
#if __has_include("load/gguf_checkpoint.h")
  return load_gguf_checkpoint(path, options);
#else
  throw Error(ErrorKind::unsupported, "GGUF files aren't supported yet");
#endif
}

}  // namespace mlxlm

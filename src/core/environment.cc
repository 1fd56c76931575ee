#include "core/environment.h"

#include <cstdlib>

namespace mlxlm {

std::string process_environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::filesystem::path expand_home(const std::string& path,
                                  const Environment& environment) {
  if (path == "~" || path.starts_with("~/")) {
    return environment("HOME") + path.substr(1);
  }
  return path;
}

std::filesystem::path user_cache_folder(const Environment& environment) {
  const std::string xdg = environment("XDG_CACHE_HOME");
  return xdg.empty() ? expand_home("~/.cache", environment)
                     : std::filesystem::path(xdg);
}

}  // namespace mlxlm

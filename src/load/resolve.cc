#include "load/resolve.h"

#include <algorithm>
#include <system_error>

#include <mlxlm/error.h>

#include "core/nearest.h"

namespace mlxlm {
namespace fs = std::filesystem;
namespace {

bool is_gguf(std::string_view name) { return name.ends_with(".gguf"); }

// Whether a name that isn't there was surely meant as a path.
bool looks_like_path(std::string_view name) {
  return name.starts_with('/') || name.starts_with('.') ||
         name.starts_with('~') || name.ends_with('/') ||
         std::ranges::count(name, '/') > 1;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "" : ", ") + name;
  }
  return text;
}

// Entries beside `path` that could be models, written as the user would.
std::vector<std::string> models_beside(const fs::path& path) {
  std::vector<std::string> names;
  fs::path folder = path.parent_path();
  std::error_code error;
  for (fs::directory_iterator entry(folder.empty() ? "." : folder, error), end;
       !error && entry != end;
       entry.increment(error)) {
    fs::path name = entry->path().filename();
    if (entry->is_directory(error) || is_gguf(name.string())) {
      names.push_back((folder / name).string());
    }
  }
  std::ranges::sort(names);
  return names;
}

std::string did_you_mean(const std::string& name,
                         const std::vector<std::string>& names) {
  auto nearest = nearest_name(name, names);
  return nearest ? "; did you mean " + *nearest + "?" : "";
}

fs::path resolve_existing(const std::string& name) {
  std::error_code error;
  if (fs::is_directory(name, error) || is_gguf(name)) {
    return name;
  }
  throw Error(ErrorKind::argument,
              name +
                  " is a file, but a model is a folder (with config.json "
                  "and *.safetensors) or a .gguf file");
}

[[noreturn]] void fail_missing_path(const std::string& name) {
  fs::path path(name);
  while (!path.empty() && !path.has_filename()) {
    path = path.parent_path();
  }
  throw Error(ErrorKind::file,
              "there is no folder or file " + name +
                  did_you_mean(path.string(), models_beside(path)));
}

// A default model's file; none if the name isn't one of theirs.
std::optional<fs::path> resolve_default(const std::string& name,
                                        const fs::path& models_folder) {
  for (const DefaultModel& model : default_models()) {
    if (name != model.name) {
      continue;
    }
    fs::path path = models_folder / model.file_name;
    std::error_code ignored;
    if (!fs::exists(path, ignored)) {
      throw Error(ErrorKind::file,
                  "the model " + name + " has not been fetched yet (" +
                      path.string() + " is missing): run scripts/fetch-model " +
                      name);
    }
    return path;
  }
  return std::nullopt;
}

[[noreturn]] void fail_unknown(const std::string& name,
                               const ResolveOptions& options) {
  std::vector<std::string> known;
  for (const DefaultModel& model : default_models()) {
    known.push_back(model.name);
  }
  std::string defaults = joined(known);
  for (auto& names : {models_beside(name), cached_repositories(options.hub)}) {
    known.insert(known.end(), names.begin(), names.end());
  }
  throw Error(ErrorKind::argument,
              "'" + name +
                  "' is no model: there is no such folder or file, it is no "
                  "default model (" +
                  defaults + ") and no hub id (org/name[@revision])" +
                  did_you_mean(name, known));
}

HubId with_revision(HubId id,
                    const std::string& name,
                    const std::string& revision) {
  if (revision.empty()) {
    return id;
  }
  if (name.find('@') != name.npos && id.revision != revision) {
    throw Error(ErrorKind::argument,
                name + " names the revision " + id.revision +
                    ", but the option says " + revision + ": give one only");
  }
  auto checked = parse_hub_id(id.repository + "@" + revision);
  if (!checked) {
    throw Error(ErrorKind::argument,
                "'" + revision + "' can't be the revision of a hub model");
  }
  return *checked;
}

// A hub model; says on failure that no folder has this name either.
fs::path resolve_hub(const HubId& id,
                     const std::string& name,
                     const ProgressHandler& progress,
                     const HubOptions& options) {
  try {
    return fetch_snapshot(id, options, progress);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::cancelled) {
      throw;
    }
    throw Error(error.kind(),
                std::string(error.what()) + "\n(nor is there a folder " + name +
                    did_you_mean(name, models_beside(name)) + ")");
  }
}

}  // namespace

const std::vector<DefaultModel>& default_models() {
  static const std::vector<DefaultModel> models = {
      {"smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"},
      {"gemma-3-270m", "gemma-3-270m-q4_k_m.gguf"},
  };
  return models;
}

fs::path default_models_folder() {
  std::string folder = process_environment("MLX_LM_MODELS_DIR");
  return folder.empty()
             ? user_cache_folder(process_environment) / "mlx-lm" / "models"
             : fs::path(folder);
}

fs::path resolve_model(const std::string& name,
                       const std::string& revision,
                       const ProgressHandler& progress,
                       const ResolveOptions& options) {
  if (name.empty() || name.find('\0') != name.npos) {
    throw Error(ErrorKind::argument, "the model's name is empty");
  }
  std::error_code ignored;
  if (fs::exists(name, ignored)) {
    return resolve_existing(name);
  }
  if (auto path = resolve_default(name, options.models_folder)) {
    return *path;
  }
  auto id = parse_hub_id(name);
  if (is_gguf(name) || (!id && looks_like_path(name))) {
    fail_missing_path(name);
  }
  if (!id) {
    fail_unknown(name, options);
  }
  return resolve_hub(
      with_revision(*id, name, revision), name, progress, options.hub);
}

fs::path resolve_model(const std::string& name,
                       const std::string& revision,
                       const ProgressHandler& progress) {
  return resolve_model(
      name, revision, progress, {default_models_folder(), hub_options()});
}

}  // namespace mlxlm

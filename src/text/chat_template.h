// Chat templates, rendered as transformers renders them.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include <mlxlm/tokenizer.h>

#include "text/rust.h"

namespace mlxlm {

// Local time as strftime_now() shows it; tests set it.
mlxlm_rust_time local_time_now();

// Templates by name ("default", "tool_use", ...), each compiled when first
// used. Safe to use from several threads.
class ChatTemplates {
 public:
  ChatTemplates() = default;
  explicit ChatTemplates(std::map<std::string, std::string> sources);

  bool empty() const { return sources_.empty(); }
  // The default one; empty if there is none.
  const std::string& source() const;
  // The only one, as markers are inferred from; empty if there are several.
  const std::string& only_source() const;

  // `variables_json`: an object; the options' kwargs replace its members.
  // Throws Error{chat_template}.
  std::string render(std::string_view messages_json,
                     const ChatTemplateOptions& options,
                     const std::string& variables_json,
                     const mlxlm_rust_time& now) const;

 private:
  const mlxlm_rust_template* compiled(const std::string& name) const;
  std::string pick(bool has_tools) const;

  std::map<std::string, std::string> sources_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, RustPtr<mlxlm_rust_template>> compiled_;
};

}  // namespace mlxlm

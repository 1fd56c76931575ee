// Thinking and tool-call markers, inferred as the reference does.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace mlxlm {

struct Markers {
  std::string think_start;
  std::string think_end;
  bool tool_calling = false;  // mistral's end marker is empty
  std::string tool_call_start;
  std::string tool_call_end;
};

using HasToken = std::function<bool(std::string_view)>;

// `chat_template`: empty if there is none, or several. `tool_parser`: the one
// tokenizer_config.json names, or empty.
Markers infer_markers(const std::string& chat_template,
                      const std::string& tool_parser,
                      const HasToken& has_token);

}  // namespace mlxlm

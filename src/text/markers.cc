// Method: the reference's tokenizer_utils.py and tool_parsers/.
#include "text/markers.h"

#include <array>
#include <utility>

namespace mlxlm {
namespace {

struct ToolMarkers {
  std::string_view parser;
  std::string_view start;
  std::string_view end;
};

constexpr ToolMarkers kToolMarkers[] = {
    {"function_gemma", "<start_function_call>", "<end_function_call>"},
    {"gemma4", "<|tool_call>", "<tool_call|>"},
    {"glm47", "<tool_call>", "</tool_call>"},
    {"json_tools", "<tool_call>", "</tool_call>"},
    {"kimi_k2", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"},
    {"kimi_k3", "<|open|>tools<|sep|>", "<|close|>tools<|sep|>"},
    {"laguna", "<tool_call>", "</tool_call>"},
    {"longcat", "<longcat_tool_call>", "</longcat_tool_call>"},
    {"minicpm5", "<function name=", "</function>"},
    {"minimax_m2", "<minimax:tool_call>", "</minimax:tool_call>"},
    {"mistral", "[TOOL_CALLS]", ""},
    {"muse_spark", "<atem:function_calls>", "</atem:function_calls>"},
    {"pythonic", "<|tool_call_start|>", "<|tool_call_end|>"},
    {"qwen3_coder", "<tool_call>", "</tool_call>"},
};

bool is_xtml(const HasToken& has_token) {
  return has_token("<|open|>") && has_token("<|close|>") &&
         has_token("<|sep|>") && has_token("<|end_of_msg|>");
}

std::string_view infer_tool_parser(std::string_view chat_template,
                                   const HasToken& has_token) {
  auto has = [&](std::string_view text) {
    return chat_template.find(text) != std::string_view::npos;
  };
  if (has("<minimax:tool_call>")) {
    return "minimax_m2";
  }
  if (has("<|tool_call>") && has("<tool_call|>")) {
    return "gemma4";
  }
  if (has("<start_function_call>")) {
    return "function_gemma";
  }
  if (has("<longcat_tool_call>")) {
    return "longcat";
  }
  if (has("<arg_key>")) {
    return "glm47";
  }
  if (has("<|tool_list_start|>") || has("<|tool_call_start|>")) {
    return "pythonic";
  }
  if (has("<tool_call>\\n<function=") || has("<tool_call>\n<function=")) {
    return "qwen3_coder";
  }
  if (has("<|tool_calls_section_begin|>")) {
    return "kimi_k2";
  }
  if (has("<function name=\"") && has("<param name=\"")) {
    return "minicpm5";
  }
  if (has("[TOOL_CALLS]")) {
    return "mistral";
  }
  if (has("<atem:function_calls>")) {
    return "muse_spark";
  }
  if (has("<tool_call>") && has("tool_call.name")) {
    return "json_tools";
  }
  if (is_xtml(has_token)) {
    return "kimi_k3";
  }
  if (has_token("<|tool_call_start|>") && has_token("<|tool_call_end|>")) {
    return "pythonic";
  }
  return "";
}

void infer_thinking(Markers& markers, const HasToken& has_token) {
  constexpr std::array<std::pair<const char*, const char*>, 3> kSingleTokens = {
      {{"<think>", "</think>"},
       {"<longcat_think>", "</longcat_think>"},
       {"<|think:start|>", "<|think:end|>"}}};
  for (auto [start, end] : kSingleTokens) {
    if (has_token(start) && has_token(end)) {
      markers.think_start = start;
      markers.think_end = end;
      return;
    }
  }
  if (has_token("<|channel>") && has_token("<channel|>")) {
    markers.think_start = "<|channel>thought";
    markers.think_end = "<channel|>";
  } else if (is_xtml(has_token)) {
    markers.think_start = "<|open|>think<|sep|>";
    markers.think_end = "<|close|>think<|sep|>";
  }
}

}  // namespace

Markers infer_markers(const std::string& chat_template,
                      const std::string& tool_parser,
                      const HasToken& has_token) {
  Markers markers;
  infer_thinking(markers, has_token);
  std::string_view parser = tool_parser.empty()
                                ? infer_tool_parser(chat_template, has_token)
                                : std::string_view(tool_parser);
  for (const ToolMarkers& known : kToolMarkers) {
    if (known.parser == parser) {
      markers.tool_calling = true;
      markers.tool_call_start = known.start;
      markers.tool_call_end = known.end;
    }
  }
  return markers;
}

}  // namespace mlxlm

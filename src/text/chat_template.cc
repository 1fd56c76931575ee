#include "text/chat_template.h"

#include <chrono>
#include <ctime>
#include <utility>

#include "text/utf8.h"

namespace mlxlm {
namespace {

const std::string kEmpty;

// JSON text that says nothing: no value, or null.
bool is_none(std::string_view json) {
  std::size_t first = json.find_first_not_of(" \t\r\n");
  return first == std::string_view::npos ||
         json.substr(first).starts_with("null");
}

}  // namespace

mlxlm_rust_time local_time_now() {
  auto now = std::chrono::system_clock::now();
  std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  auto microseconds = std::chrono::duration_cast<std::chrono::microseconds>(
      now - std::chrono::system_clock::from_time_t(seconds));
  std::tm parts{};
  localtime_r(&seconds, &parts);
  return {parts.tm_year + 1900,
          parts.tm_mon + 1,
          parts.tm_mday,
          parts.tm_hour,
          parts.tm_min,
          parts.tm_sec,
          static_cast<std::int32_t>(microseconds.count() % 1'000'000)};
}

ChatTemplates::ChatTemplates(std::map<std::string, std::string> sources)
    : sources_(std::move(sources)) {}

const std::string& ChatTemplates::source() const {
  auto found = sources_.find("default");
  return found == sources_.end() ? kEmpty : found->second;
}

const std::string& ChatTemplates::only_source() const {
  return sources_.size() == 1 ? source() : kEmpty;
}

std::string ChatTemplates::pick(bool has_tools) const {
  if (has_tools && sources_.contains("tool_use")) {
    return "tool_use";
  }
  if (sources_.contains("default")) {
    return "default";
  }
  if (sources_.empty()) {
    throw Error(ErrorKind::chat_template,
                "the model has no chat template: name one, or give the prompt "
                "as it stands");
  }
  std::string names;
  for (const auto& [name, source] : sources_) {
    names += (names.empty() ? "" : ", ") + name;
  }
  throw Error(ErrorKind::chat_template,
              "the model has several chat templates (" + names +
                  ") and no default one: name one");
}

const mlxlm_rust_template* ChatTemplates::compiled(
    const std::string& name) const {
  std::scoped_lock lock(mutex_);
  RustPtr<mlxlm_rust_template>& slot = compiled_[name];
  if (slot == nullptr) {
    mlxlm_rust_template* compiled = nullptr;
    check_rust(
        mlxlm_rust_template_compile(rust_view(sources_.at(name)), &compiled),
        ErrorKind::chat_template,
        "the chat template");
    slot.reset(compiled);
  }
  return slot.get();
}

std::string ChatTemplates::render(std::string_view messages_json,
                                  const ChatTemplateOptions& options,
                                  const std::string& variables_json,
                                  const mlxlm_rust_time& now) const {
  bool has_tools = !is_none(options.tools_json);
  const mlxlm_rust_template* compiled_template = compiled(pick(has_tools));
  std::string messages = replace_invalid_utf8(messages_json);
  std::string tools = replace_invalid_utf8(options.tools_json);
  std::string kwargs = replace_invalid_utf8(options.kwargs_json);
  mlxlm_rust_chat chat{};
  chat.messages_json = rust_view(messages);
  chat.tools_json = rust_view(has_tools ? std::string_view(tools) : "");
  chat.variables_json = rust_view(variables_json);
  chat.kwargs_json = rust_view(is_none(kwargs) ? "" : std::string_view(kwargs));
  chat.add_generation_prompt = options.add_generation_prompt;
  chat.continue_final_message = options.continue_final_message;
  chat.now = now;
  mlxlm_rust_string text{};
  check_rust(mlxlm_rust_template_render(compiled_template, &chat, &text),
             ErrorKind::chat_template,
             "the chat template");
  return take_text(text);
}

}  // namespace mlxlm

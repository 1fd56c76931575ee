#include "generate/message_json.h"

#include "core/json.h"

namespace mlxlm {

using nlohmann::json;

json json_of(const Message& message) {
  json value = json::object();
  if (!message.fields_json.empty()) {
    value =
        parse_json(message.fields_json, "fields_json", {}, ErrorKind::argument);
  }
  if (!value.is_object()) {
    throw Error(ErrorKind::argument,
                "fields_json of a message must be a JSON object, not " +
                    describe_json(value));
  }
  value["role"] = message.role;
  value["content"] = message.content;
  return value;
}

Message message_of(const json& value) {
  auto text = [&](const char* name) {
    auto found = value.is_object() ? value.find(name) : value.end();
    if (found == value.end() || !found->is_string()) {
      throw Error(
          ErrorKind::format,
          std::string("a message of the saved chat has no text as its ") +
              name);
    }
    return found->get<std::string>();
  };
  Message message{text("role"), text("content"), ""};
  json fields = value;
  fields.erase("role");
  fields.erase("content");
  if (!fields.empty()) {
    message.fields_json = dumped(fields);
  }
  return message;
}

}  // namespace mlxlm

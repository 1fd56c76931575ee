// A session's messages as the JSON that templates and files take.
#pragma once

#include <nlohmann/json.hpp>

#include <mlxlm/session.h>

namespace mlxlm {

// Throws Error{argument} if fields_json is no object.
nlohmann::json json_of(const Message& message);

// Back from json_of(); throws Error{format}.
Message message_of(const nlohmann::json& value);

}  // namespace mlxlm

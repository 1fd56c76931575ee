#include "cli/batch_request.h"

#include <set>
#include <string>

#include <mlxlm/error.h>

#include "cli/generation_output.h"
#include "core/json.h"

namespace mlxlm::cli {
namespace {

using nlohmann::json;

[[noreturn]] void fail(const std::string& field,
                       const std::string& wanted,
                       const json& value) {
  throw Error(
      ErrorKind::argument,
      "\"" + field + "\" must be " + wanted + ", not " + describe_json(value));
}

// Reads the fields that are there; whatever nobody asks for isn't known.
class Fields {
 public:
  explicit Fields(const json& fields) : fields_(fields) {}

  const json* find(const std::string& name) {
    known_.insert(name);
    auto found = fields_.find(name);
    return found == fields_.end() || found->is_null() ? nullptr : &*found;
  }

  void read(const std::string& name, double& value) {
    const json* found = find(name);
    if (found == nullptr) return;
    if (!found->is_number()) fail(name, "a number", *found);
    value = found->get<double>();
  }

  void read(const std::string& name, int& value) {
    const json* found = find(name);
    if (found == nullptr) return;
    if (!found->is_number_integer() || found->get<std::int64_t>() > INT32_MAX ||
        found->get<std::int64_t>() < INT32_MIN) {
      fail(name, "a whole number", *found);
    }
    value = found->get<int>();
  }

  void read(const std::string& name, bool& value) {
    const json* found = find(name);
    if (found == nullptr) return;
    if (!found->is_boolean()) fail(name, "true or false", *found);
    value = found->get<bool>();
  }

  void read(const std::string& name, std::string& value) {
    const json* found = find(name);
    if (found == nullptr) return;
    if (!found->is_string()) fail(name, "a text", *found);
    value = found->get<std::string>();
  }

  void check_all_known() const {
    for (const auto& [name, value] : fields_.items()) {
      if (known_.count(name) == 0) {
        throw Error(ErrorKind::argument,
                    "\"" + name + "\" is no field of a request");
      }
    }
  }

 private:
  const json& fields_;
  std::set<std::string> known_;
};

std::vector<std::string> stops_of(const json& stop) {
  std::vector<std::string> stops;
  for (const json& each : stop.is_array() ? stop : json::array({stop})) {
    if (!each.is_string() || each.get<std::string>().empty()) {
      fail("stop", "a text or a list of texts", each);
    }
    stops.push_back(each.get<std::string>());
  }
  return stops;
}

std::vector<std::pair<int, double>> biases_of(const json& biases) {
  std::vector<std::pair<int, double>> result;
  if (!biases.is_object()) {
    fail("logit_bias", "an object of token ids and numbers", biases);
  }
  for (const auto& [token, value] : biases.items()) {
    std::size_t end = 0;
    int id = -1;
    try {
      id = std::stoi(token, &end);
    } catch (const std::exception&) {
      // not a number
    }
    if (id < 0 || end != token.size() || !value.is_number()) {
      fail("logit_bias", "an object of token ids and numbers", value);
    }
    result.emplace_back(id, value.get<double>());
  }
  return result;
}

std::vector<int> tokens_of(const json& tokens) {
  std::vector<int> ids;
  if (!tokens.is_array()) fail("tokens", "a list of token ids", tokens);
  for (const json& each : tokens) {
    if (!each.is_number_unsigned() || each.get<std::uint64_t>() > INT32_MAX) {
      fail("tokens", "a list of token ids", each);
    }
    ids.push_back(each.get<int>());
  }
  return ids;
}

// Who drafts, of those that the options brought.
void read_draft(Fields& fields, GenerateOptions& options) {
  std::string draft;
  fields.read("draft", draft);
  if (draft == "none" || draft == "ngram") {
    options.draft = draft == "none" ? DraftKind::none : DraftKind::ngram;
    options.draft_model.reset();
  } else if (draft == "model" && !options.draft_model) {
    throw Error(ErrorKind::argument,
                "\"draft\" is model, but there is no --draft-model");
  } else if (draft == "mtp" && options.draft != DraftKind::mtp) {
    throw Error(ErrorKind::argument,
                "\"draft\" is mtp, but the model was loaded without its head: "
                "it takes --draft mtp");
  } else if (!draft.empty() && draft != "model" && draft != "mtp") {
    fail("draft", "none, ngram, mtp or model", draft);
  }
  int count = options.num_draft_tokens.value_or(0);
  fields.read("num_draft_tokens", count);
  if (fields.find("num_draft_tokens") != nullptr) {
    options.num_draft_tokens = count;
  }
}

}  // namespace

json RequestReader::id_of(const json& fields, std::uint64_t line_number) {
  if (!fields.is_object()) {
    throw Error(ErrorKind::argument,
                "a request must be an object, not " + describe_json(fields));
  }
  auto found = fields.find("id");
  if (found == fields.end()) return line_number;
  if (!found->is_string() && !found->is_number_integer()) {
    fail("id", "a text or a whole number", *found);
  }
  return *found;
}

std::vector<int> RequestReader::prompt_of(const json& fields) const {
  const char* kinds[] = {"prompt", "messages", "tokens"};
  const char* given = nullptr;
  for (const char* kind : kinds) {
    if (!fields.contains(kind)) continue;
    if (given != nullptr) {
      throw Error(ErrorKind::argument,
                  std::string("a request has \"") + given + "\" and \"" + kind +
                      "\"; it can have one of prompt, messages and tokens");
    }
    given = kind;
  }
  if (given == nullptr) {
    throw Error(ErrorKind::argument,
                "a request needs \"prompt\", \"messages\" or \"tokens\"");
  }
  const json& value = fields[given];
  if (given == kinds[2]) return tokens_of(value);
  if (given == kinds[0] && !value.is_string()) fail(given, "a text", value);
  if (given == kinds[1] && !value.is_array()) {
    fail(given, "a list of messages", value);
  }
  if (!tokenizer_->has_chat_template()) {
    if (given == kinds[1]) {
      throw Error(ErrorKind::chat_template,
                  "\"messages\" need a chat template, which this model lacks; "
                  "use \"prompt\"");
    }
    return tokenizer_->encode(value.get<std::string>());
  }
  const json messages =
      given == kinds[1] ? value
                        : json::array({{{"role", "user"}, {"content", value}}});
  ChatTemplateOptions options;
  options.add_generation_prompt = true;
  return tokenizer_->encode(
      tokenizer_->apply_chat_template(dumped(messages), options),
      /*add_special_tokens=*/false);
}

BatchRequest RequestReader::read(const json& line) const {
  Fields fields(line);
  BatchRequest request{.prompt = prompt_of(line), .options = defaults_};
  for (const char* read_already : {"id", "prompt", "messages", "tokens"}) {
    fields.find(read_already);
  }
  GenerateOptions& options = request.options;
  fields.read("max_tokens", options.max_tokens);
  fields.read("ignore_eos", options.ignore_eos);
  fields.read("priority", request.priority);
  fields.read("tenant", request.tenant);
  options.prefix_tenant = request.tenant;
  if (const json* stop = fields.find("stop")) {
    options.stop_texts = stops_of(*stop);
  }
  SamplerOptions sampler = sampler_;
  fields.read("temp", sampler.temperature);
  fields.read("top_p", sampler.top_p);
  fields.read("min_p", sampler.min_p);
  fields.read("top_k", sampler.top_k);
  fields.read("xtc_probability", sampler.xtc_probability);
  fields.read("xtc_threshold", sampler.xtc_threshold);
  options.sampler = make_sampler(sampler);
  if (const json* seed = fields.find("seed")) {
    if (!seed->is_number_unsigned()) fail("seed", "a whole number", *seed);
    // Without random numbers a seed has no meaning.
    if (sampler.temperature > 0) {
      options.sampler = with_seed(options.sampler, seed->get<std::uint64_t>());
    }
  }
  PenaltyOptions penalties = penalties_;
  fields.read("repetition_penalty", penalties.repetition_penalty);
  fields.read("presence_penalty", penalties.presence_penalty);
  fields.read("frequency_penalty", penalties.frequency_penalty);
  if (const json* biases = fields.find("logit_bias")) {
    penalties.logit_bias = biases_of(*biases);
  }
  options.logits_processors = make_logits_processors(penalties);
  read_draft(fields, options);
  fields.check_all_known();
  return request;
}

}  // namespace mlxlm::cli

#include "tests/support/model_writer.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <optional>
#include <stdexcept>
#include <vector>

#include <mlx/mlx.h>

namespace mlxlm {
namespace {

namespace mx = mlx::core;
using nlohmann::json;
using Tensors = std::unordered_map<std::string, mx::array>;

// Adds tensors one after the other, each with a key of its own.
class Writer {
 public:
  explicit Writer(const TinyModel& model)
      : model_(model), key_(mx::random::key(model.seed)) {}

  void add_matrix(const std::string& module, int rows, int columns) {
    float scale = 1.0f / std::sqrt(static_cast<float>(columns));
    mx::array weight = normal({rows, columns}, scale);
    if (model_.quantize_bits == 0) {
      tensors_.emplace(module + ".weight", weight);
      return;
    }
    auto parts = mx::quantize(
        weight, model_.group_size, model_.quantize_bits, model_.mode);
    tensors_.emplace(module + ".weight", parts[0]);
    tensors_.emplace(module + ".scales", parts[1]);
    if (parts.size() > 2) {
      tensors_.emplace(module + ".biases", parts[2]);
    }
  }

  void add_norm(const std::string& module, int size) {
    tensors_.emplace(module + ".weight",
                     mx::add(mx::array(1.0f), normal({size}, 0.1f)));
  }

  Tensors take() { return std::move(tensors_); }

 private:
  mx::array normal(mx::Shape shape, float scale) {
    auto [next, key] = mx::random::split(key_);
    key_ = next;
    return mx::multiply(mx::random::normal(shape, mx::float32, 0, 1, key),
                        mx::array(scale));
  }

  const TinyModel& model_;
  mx::array key_;
  Tensors tensors_;
};

void append_utf8(std::string& out, int code_point) {
  if (code_point < 0x80) {
    out += static_cast<char>(code_point);
  } else {
    out += static_cast<char>(0xC0 | (code_point >> 6));
    out += static_cast<char>(0x80 | (code_point & 0x3F));
  }
}

// The visible characters that byte-level tokenizers write for bytes.
std::vector<std::string> byte_names() {
  std::vector<std::string> names;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    bool visible = (byte >= 33 && byte <= 126) ||
                   (byte >= 161 && byte <= 172) || byte >= 174;
    std::string name;
    append_utf8(name, visible ? byte : next++);
    names.push_back(name);
  }
  return names;
}

const std::map<int, std::string>& special_tokens() {
  static const std::map<int, std::string> tokens = {
      {kTinyEndOfText, "<|endoftext|>"},
      {kTinyStart, "<|im_start|>"},
      {kTinyEnd, "<|im_end|>"},
      {kTinyPad, "<|pad|>"}};
  return tokens;
}

std::string shard_name(int index, int count) {
  if (count == 1) {
    return "model.safetensors";
  }
  char name[64];
  std::snprintf(
      name, sizeof(name), "model-%05d-of-%05d.safetensors", index + 1, count);
  return name;
}

void write_weights(const std::filesystem::path& folder,
                   const TinyModel& model) {
  Tensors tensors = tiny_weights(model);
  std::map<std::string, mx::array> sorted(tensors.begin(), tensors.end());
  std::vector<Tensors> shards(model.num_shards);
  json weight_map = json::object();
  std::size_t next = 0;
  for (const auto& [name, tensor] : sorted) {
    int shard = static_cast<int>(next++ % shards.size());
    shards[shard].emplace(name, tensor);
    weight_map[name] = shard_name(shard, model.num_shards);
  }
  for (int i = 0; i < model.num_shards; ++i) {
    mx::save_safetensors((folder / shard_name(i, model.num_shards)).string(),
                         shards[i],
                         {{"format", "mlx"}});
  }
  if (model.num_shards > 1) {
    json index = {{"metadata", json::object()}, {"weight_map", weight_map}};
    write_text(folder / "model.safetensors.index.json", index.dump(1));
  }
}

}  // namespace

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) {
    throw std::runtime_error("cannot write " + path.string());
  }
}

nlohmann::json tiny_config(const TinyModel& model) {
  json config = {{"model_type", "llama"},
                 {"architectures", {"LlamaForCausalLM"}},
                 {"hidden_size", model.hidden_size},
                 {"intermediate_size", model.intermediate_size},
                 {"num_hidden_layers", model.num_layers},
                 {"num_attention_heads", model.num_heads},
                 {"num_key_value_heads", model.num_kv_heads},
                 {"vocab_size", model.vocabulary_size},
                 {"max_position_embeddings", model.context_tokens},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"tie_word_embeddings", model.tied_head},
                 {"eos_token_id", kTinyEnd}};
  if (model.quantize_bits != 0) {
    config["quantization"] = {{"group_size", model.group_size},
                              {"bits", model.quantize_bits},
                              {"mode", model.mode}};
    config["quantization_config"] = config["quantization"];
  }
  config.update(model.config_changes);
  return config;
}

std::unordered_map<std::string, mlx::core::array> tiny_weights(
    const TinyModel& model) {
  Writer writer(model);
  int width = model.hidden_size;
  int head = width / model.num_heads;
  writer.add_matrix("model.embed_tokens", model.vocabulary_size, width);
  for (int i = 0; i < model.num_layers; ++i) {
    std::string layer = "model.layers." + std::to_string(i);
    writer.add_norm(layer + ".input_layernorm", width);
    writer.add_norm(layer + ".post_attention_layernorm", width);
    std::string attention = layer + ".self_attn.";
    writer.add_matrix(attention + "q_proj", model.num_heads * head, width);
    writer.add_matrix(attention + "k_proj", model.num_kv_heads * head, width);
    writer.add_matrix(attention + "v_proj", model.num_kv_heads * head, width);
    writer.add_matrix(attention + "o_proj", width, model.num_heads * head);
    writer.add_matrix(layer + ".mlp.gate_proj", model.intermediate_size, width);
    writer.add_matrix(layer + ".mlp.up_proj", model.intermediate_size, width);
    writer.add_matrix(layer + ".mlp.down_proj", width, model.intermediate_size);
  }
  writer.add_norm("model.norm", width);
  if (!model.tied_head) {
    writer.add_matrix("lm_head", model.vocabulary_size, width);
  }
  return writer.take();
}

nlohmann::json tiny_tokenizer() {
  json vocabulary = json::object();
  std::vector<std::string> names = byte_names();
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[names[byte]] = byte;
  }
  json added = json::array();
  for (const auto& [id, text] : special_tokens()) {
    vocabulary[text] = id;
    added.push_back({{"id", id},
                     {"content", text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  json byte_level = {{"type", "ByteLevel"},
                     {"add_prefix_space", false},
                     {"trim_offsets", true},
                     {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocabulary},
            {"merges", json::array()}}}};
}

nlohmann::json tiny_tokenizer_config() {
  return {{"tokenizer_class", "PreTrainedTokenizerFast"},
          {"bos_token", nullptr},
          {"eos_token", "<|im_end|>"},
          {"pad_token", "<|pad|>"},
          {"clean_up_tokenization_spaces", false},
          {"chat_template",
           "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
           "{{ message['content'] }}<|im_end|>\n{% endfor %}"
           "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"}};
}

void write_tiny_model(const std::filesystem::path& folder,
                      const TinyModel& model) {
  write_text(folder / "config.json", tiny_config(model).dump(1));
  write_weights(folder, model);
  if (model.tokenizer) {
    write_text(folder / "tokenizer.json", tiny_tokenizer().dump());
    write_text(folder / "tokenizer_config.json",
               tiny_tokenizer_config().dump(1));
  }
}

}  // namespace mlxlm

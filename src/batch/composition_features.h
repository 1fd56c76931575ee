// The list of features that the composition tests combine.
#pragma once

#include <map>

#include "batch/composition.h"

namespace mlxlm::composition {

// All filters and a seed of its own.
inline void sample(Case& run) {
  run.options.sampler = with_seed(make_sampler({.temperature = 0.9,
                                                .top_p = 0.98,
                                                .min_p = 0.001,
                                                .top_k = 100,
                                                .xtc_probability = 0.3,
                                                .xtc_threshold = 0.2}),
                                  17);
}

// Never takes the best token.
inline void own_sampler(Case& run) {
  run.options.sampler = [inner = run.options.sampler](const mx::array& all) {
    auto best = mx::max(all, -1, true);
    auto others = mx::where(mx::equal(all, best), mx::array(-1e9f), all);
    return inner ? inner(others) : mx::argmax(others, -1);
  };
}

inline void penalize(Case& run) {
  for (auto& process :
       make_logits_processors({.logit_bias = {{101, 1.5}, {32, -2.0}},
       .repetition_penalty = 1.2,
       .presence_penalty = 0.3,
       .frequency_penalty = 0.2})) {
    run.options.logits_processors.push_back(std::move(process));
  }
}

// Depends on every token before.
inline void own_processor(Case& run) {
  run.options.logits_processors.push_back(
      [](const mx::array& tokens, const mx::array& logits) {
        auto token = mx::remainder(mx::sum(tokens), mx::array(200));
        auto chosen = mx::equal(mx::arange(logits.shape(1)), token);
        return mx::add(logits, mx::astype(chosen, logits.dtype()));
      });
}

inline void stop_text(Case& run, const std::vector<int>& tokens) {
  ToyDetokenizer detokenizer;
  for (int token : tokens) detokenizer.add_token(token);
  const std::string& text = detokenizer.text();
  // Whole characters from the middle on.
  std::size_t at = text.size() / 2;
  while (at > 0 && (text[at] & 0xc0) == 0x80) --at;
  run.options.stop_texts = {text.substr(at)};
}

inline void quantize(Case& run) {
  run.options.kv_bits = 4;
  run.options.kv_key_bits = 8;
  run.options.kv_group_size = 32;
  run.options.quantized_kv_start = 27;  // within the answer
}

inline void embed(Case& run) {
  const int count = static_cast<int>(run.prompt.size());
  run.options.input_embeddings =
      run.model->embed(mx::array(run.prompt.data(), {count}));
}

inline void draft(Case& run, DraftKind kind) {
  run.options.draft = kind;
  run.options.num_draft_tokens = 3;
}

inline void watch_progress(Case& run) {
  run.progress = std::make_shared<std::vector<int>>();
  run.options.prompt_progress = [seen = run.progress](int done, int total) {
    if (!seen->empty()) seen->pop_back();
    seen->push_back(done);
    seen->push_back(total);
  };
}

// Of rows with the same model it is one.
inline void draft_by_model(Case& run) {
  static std::map<ModelPtr, ModelPtr> drafts;
  auto& model = drafts[run.model];
  if (!model) {
    ToyOptions toy = run.toy;
    toy.head_noise.reset();
    toy.noise = 0.03f;
    model = std::make_shared<ToyModel>(toy);
  }
  draft(run, DraftKind::model);
  run.options.draft_model = model;
}

// Layers of a kind, besides those of other kinds.
inline ToyOptions& layers(Case& run) {
  auto& toy = run.toy;
  const bool has_others =
      toy.window_tokens > 0 || toy.recurrent || toy.chunk_tokens > 0;
  toy.num_layers = has_others ? 4 : 2;
  return toy;
}

// Features that write the same option build on those before them.
inline std::vector<Feature> features() {
  return {
      {"sliding window", [](Case& run) { layers(run).window_tokens = 6; }},
      {"recurrent layers", [](Case& run) { layers(run).recurrent = true; }},
      {"chunked attention", [](Case& run) { layers(run).chunk_tokens = 16; }},
      {"max_kv_size", [](Case& run) { run.options.max_kv_size = 28; }},
      {"kv_bits", quantize},
      {"sampler, seed", sample},
      {"own sampler", own_sampler},
      {"penalties, bias", penalize},
      {"own processor", own_processor},
      {.name = "end of sequence",
       .ends = [](Case& run,
                  const auto& tokens) { run.end_tokens = {tokens[6]}; }},
      {.name = "stop_sequences",
       .ends =
           [](Case& run, const auto& tokens) {
             run.options.stop_sequences = {{tokens[4], tokens[5]}};
           }},
      {.name = "stop_texts", .ends = stop_text},
      {.name = "cancel", .how = [](Case& run) { run.cancel_after = 3; }},
      {.name = "deadline",
       .means = [](Case& run) { run.starts_late = true; },
       .how =
           [](Case& run) {
             run.options.deadline = std::chrono::steady_clock::now();
           }},
      {.name = "prefill_step_tokens",
       .how = [](Case& run) { run.options.prefill_step_tokens = 5; }},
      {.name = "prompt_checkpoints",
       .how =
           [](Case& run) {
             run.options.prompt_checkpoints = {7, 15};
           }},
      {.name = "prompt_cache, saved",
       .how = [](Case& run) { read_ahead(run, 9); }},
      {.name = "input_embeddings", .how = embed},
      {.name = "draft_model", .how = draft_by_model},
      {.name = "draft: ngram",
       .how = [](Case& run) { draft(run, DraftKind::ngram); }},
      {.name = "draft: mtp",
       .how = [](Case& run) { draft(run, DraftKind::mtp); }},
      {.name = "prefix_store", .how = [](Case& run) { store_ahead(run, 15); }},
      {.name = "prompt_progress", .how = watch_progress},
  };
}

}  // namespace mlxlm::composition

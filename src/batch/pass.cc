#include "batch/pass.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "cache/batch_cache.h"
#include "kernels/seam.h"

namespace mlxlm {
namespace {

// The next tokens of a row, [count] int32.
mx::array tokens_of(const Row& row, int count) {
  if (!row.reading()) {
    return row.drawn ? row.drawn->token : row.drafts->tokens();
  }
  if (row.to_read.tokens.empty()) return mx::zeros({count}, mx::int32);
  return mx::array(
      row.to_read.tokens.data() + row.num_read, {count}, mx::int32);
}

// Likewise as the model's input [1, count, D].
mx::array embeddings_of(Model& model, const Row& row, int count) {
  if (row.reading() && row.to_read.embeddings) {
    const mx::array& all = *row.to_read.embeddings;
    return mx::expand_dims(
        mx::slice(all, {row.num_read, 0}, {row.num_read + count, all.shape(1)}),
        0);
  }
  return model.embed(mx::reshape(tokens_of(row, count), {1, count}));
}

// The next tokens of all, where they were drawn as one array: joining copies
// them row by row.
std::optional<mx::array> drawn_together(const std::vector<PassPart>& parts) {
  const auto& all = parts[0].row->drawn_with;
  if (!all || all->size() != parts.size()) return std::nullopt;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Row& row = *parts[i].row;
    if (row.reading() || !row.drawn || !row.drawn_with ||
        row.drawn_with->id() != all->id() ||
        row.drawn_at != static_cast<int>(i)) {
      return std::nullopt;
    }
  }
  return all;
}

// The next tokens of all, [L] int32.
mx::array tokens_of(const std::vector<PassPart>& parts) {
  if (auto all = drawn_together(parts)) return *all;
  std::vector<mx::array> tokens;
  for (const auto& part : parts) {
    tokens.push_back(tokens_of(*part.row, part.num_tokens));
  }
  return join_tokens(std::move(tokens), 0);
}

bool has_embeddings(const PassPart& part) {
  return part.row->reading() && part.row->to_read.embeddings.has_value();
}

bool wants_states(const PassPart& part) {
  return part.row->drafts && part.row->drafts->wants_states();
}

// Logits [1, N, V] at N positions. Tells of states who drafts with them.
mx::array forward(Model& model,
                  const std::vector<PassPart>& parts,
                  const std::vector<int>& positions) {
  std::vector<const PromptCache*> caches;
  std::vector<int> counts;
  for (const auto& part : parts) {
    caches.push_back(part.row->cache);
    counts.push_back(part.num_tokens);
  }
  std::optional<mx::array> embeddings;
  if (std::ranges::any_of(parts, has_embeddings)) {
    std::vector<mx::array> inputs;
    for (const auto& part : parts) {
      inputs.push_back(embeddings_of(model, *part.row, part.num_tokens));
    }
    embeddings = join_tokens(std::move(inputs), 1);
  }
  const auto all = mx::expand_dims(tokens_of(parts), 0);
  const auto layers = join_rows(caches, counts);
  if (std::ranges::none_of(parts, wants_states)) {
    return model.forward_at(positions, all, layers, embeddings);
  }
  auto read = model.forward_with_states(all, layers, positions, embeddings);
  const auto states = split_tokens(read.states, counts, 1);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (wants_states(parts[i])) parts[i].row->drafts->read_states(states[i]);
  }
  return read.logits;
}

// Draws for all rows that take the most probable token as it is, in one
// operation; returns the others. logits [N, V], in the order of the rows.
std::vector<std::size_t> draw_together(const std::vector<Row*>& rows,
                                       const mx::array& logits) {
  std::vector<std::size_t> others;
  std::vector<int> plain;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i]->sampling.is_greedy()) {
      plain.push_back(static_cast<int>(i));
    } else {
      others.push_back(i);
    }
  }
  if (plain.empty()) return others;
  auto chosen = logits;
  if (!others.empty()) {
    mx::array index(plain.data(), {static_cast<int>(plain.size())}, mx::int32);
    chosen = mx::take(logits, index, 0);
  }
  auto logprobs = kernels::table().log_softmax(chosen);
  // The same numbers, without a kernel that changes their type.
  auto tokens = mx::view(kernels::table().argmax(logprobs), mx::int32);
  auto each_tokens = mx::split(tokens, static_cast<int>(plain.size()), 0);
  auto each_logprobs = mx::split(logprobs, static_cast<int>(plain.size()), 0);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    Row& row = *rows[plain[i]];
    row.drawn = Sampled{each_tokens[i], mx::squeeze(each_logprobs[i], 0)};
    row.drawn_with = tokens;
    row.drawn_at = static_cast<int>(i);
  }
  return others;
}

std::vector<RowFailure> draw(const std::vector<Row*>& rows,
                             const mx::array& logits) {
  std::vector<RowFailure> failures;
  for (std::size_t i : draw_together(rows, logits)) {
    Row& row = *rows[i];
    const int at = static_cast<int>(i);
    row.drawn_with.reset();
    try {
      row.drawn = row.sampling.draw(
          mx::slice(logits, {at, 0}, {at + 1, logits.shape(1)}));
    } catch (const std::exception& error) {
      row.drawn.reset();
      failures.push_back({&row, error.what()});
    }
  }
  return failures;
}

// What the processors are to know, and what is read then.
void note_read(const PassPart& part) {
  Row& row = *part.row;
  if (!row.reading()) {
    if (row.drawn) {
      row.sampling.add_history(row.drawn->token);
    } else if (row.drafts->num_drafts() == 0) {
      row.drafts->note_read();
    }
    return;
  }
  const auto& tokens = row.to_read.tokens;
  if (!tokens.empty()) {
    const auto first = tokens.begin() + row.num_read;
    const std::vector<int> read(first, first + part.num_tokens);
    row.sampling.add_history(read);
    if (row.drafts) row.drafts->add_prompt(read);
  }
  row.num_read += part.num_tokens;
}

// How many tokens of its prompt a row reads next.
int next_chunk(const Row& row, int most) {
  const int step = tokens_to_checkpoint(row.num_read, row.options());
  if (!row.depends_on_chunks) {
    return std::min({most, step, row.num_left()});
  }
  // Exactly as it would alone.
  return row.num_left() == 1 ? 1 : std::min(step, row.num_left() - 1);
}

}  // namespace

std::vector<PassPart> plan_pass(const std::vector<std::unique_ptr<Row>>& rows,
                                int prompt_tokens) {
  std::vector<PassPart> parts;
  int num_reading = 0;
  for (const auto& row : rows) {
    if (row->reading()) {
      ++num_reading;
    } else {
      const int count = row->drawn ? 1 : row->drafts->num_tokens();
      parts.push_back({row.get(), count, false});
    }
  }
  bool reads = false;
  for (const auto& row : rows) {
    if (!row->reading() || prompt_tokens == 0) continue;
    const int share = std::max(prompt_tokens / num_reading--, 1);
    const int count = next_chunk(*row, share);
    // A chunk that can't be cut has a pass for itself if it must.
    if (reads && count > prompt_tokens) continue;
    reads = true;
    parts.push_back({row.get(), count, true});
    prompt_tokens = std::max(prompt_tokens - count, 0);
  }
  return parts;
}

std::vector<RowFailure> run_pass(Model& model, std::vector<PassPart>& parts) {
  std::vector<Row*> drawing;
  std::vector<int> positions;
  std::vector<int> drawn_at;  // of those: where a row draws one token
  int end = 0;
  for (const PassPart& part : parts) {
    end += part.num_tokens;
    if (part.row->num_left() > part.num_tokens) continue;
    const int num_drafts = part.num_drafts();
    if (num_drafts == 0) {
      drawing.push_back(part.row);
      drawn_at.push_back(static_cast<int>(positions.size()));
    }
    for (int i = num_drafts; i >= 0; --i) positions.push_back(end - 1 - i);
  }
  auto logits =
      forward(model, parts, positions.empty() ? std::vector{0} : positions);
  logits = mx::astype(mx::squeeze(logits, 0), mx::float32);
  int next = 0;
  for (PassPart& part : parts) {
    const int num_drafts = part.num_drafts();
    if (num_drafts > 0) {
      part.logits = mx::slice(
          logits, {next, 0}, {next + num_drafts + 1, logits.shape(1)});
    }
    if (part.row->num_left() <= part.num_tokens) next += num_drafts + 1;
    note_read(part);
    apply_quantization(*part.row->cache, part.row->options());
  }
  std::vector<RowFailure> failures;
  std::vector<mx::array> results;
  if (!drawing.empty()) {
    const int count = static_cast<int>(drawn_at.size());
    failures = draw(
        drawing,
        count == logits.shape(0)
            ? logits
            : mx::take(
                  logits, mx::array(drawn_at.data(), {count}, mx::int32), 0));
    for (const Row* row : drawing) {
      if (!row->drawn) continue;
      results.push_back(row->drawn->token);
      results.push_back(row->drawn->logprobs);
    }
  }
  for (const PassPart& part : parts) {
    if (part.logits) results.push_back(*part.logits);
    if (part.row->drawn || part.logits) continue;
    for (const auto& layer : *part.row->cache) layer->append_arrays_to(results);
  }
  mx::async_eval(std::move(results));
  return failures;
}

}  // namespace mlxlm

#include "batch/pass.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "cache/batch_cache.h"
#include "kernels/seam.h"

namespace mlxlm {
namespace {

// The next tokens of a row, [count] int32.
mx::array tokens_of(const Row& row, int count) {
  if (!row.reading()) return row.drawn->token;
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

bool has_embeddings(const PassPart& part) {
  return part.row->reading() && part.row->to_read.embeddings.has_value();
}

// Logits [1, N, V] at the last token of each row in `drawing`.
mx::array forward(Model& model,
                  const std::vector<PassPart>& parts,
                  const std::vector<int>& positions) {
  std::vector<const PromptCache*> caches;
  std::vector<int> counts;
  std::vector<mx::array> tokens;
  for (const auto& [row, count, of_prompt] : parts) {
    caches.push_back(row->cache);
    counts.push_back(count);
    tokens.push_back(tokens_of(*row, count));
  }
  std::optional<mx::array> embeddings;
  if (std::ranges::any_of(parts, has_embeddings)) {
    std::vector<mx::array> inputs;
    for (const auto& [row, count, of_prompt] : parts) {
      inputs.push_back(embeddings_of(model, *row, count));
    }
    embeddings = join_tokens(std::move(inputs), 1);
  }
  auto all = mx::expand_dims(join_tokens(std::move(tokens), 0), 0);
  return model.forward_at(
      positions, all, join_rows(caches, counts), embeddings);
}

// Draws for all rows that take the most probable token as it is, in one
// operation; returns the others. logits [N, V].
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
  auto tokens = mx::astype(kernels::table().argmax(logprobs), mx::int32);
  auto each_tokens = mx::split(tokens, static_cast<int>(plain.size()), 0);
  auto each_logprobs = mx::split(logprobs, static_cast<int>(plain.size()), 0);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    rows[plain[i]]->drawn =
        Sampled{each_tokens[i], mx::squeeze(each_logprobs[i], 0)};
  }
  return others;
}

std::vector<RowFailure> draw(const std::vector<Row*>& rows,
                             const mx::array& logits) {
  std::vector<RowFailure> failures;
  for (std::size_t i : draw_together(rows, logits)) {
    Row& row = *rows[i];
    const int at = static_cast<int>(i);
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
    row.sampling.add_history(row.drawn->token);
    return;
  }
  const auto& tokens = row.to_read.tokens;
  if (!tokens.empty()) {
    const auto first = tokens.begin() + row.num_read;
    row.sampling.add_history(std::vector<int>(first, first + part.num_tokens));
  }
  row.num_read += part.num_tokens;
}

// How many tokens of its prompt a row reads next.
int next_chunk(const Row& row, int most) {
  const int step = row.options().prefill_step_tokens;
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
      parts.push_back({row.get(), 1, false});
    }
  }
  for (const auto& row : rows) {
    if (!row->reading() || prompt_tokens == 0) continue;
    const int share = std::max(prompt_tokens / num_reading--, 1);
    const int count = next_chunk(*row, share);
    parts.push_back({row.get(), count, true});
    prompt_tokens = std::max(prompt_tokens - count, 0);
  }
  return parts;
}

std::vector<RowFailure> run_pass(Model& model,
                                 const std::vector<PassPart>& parts) {
  std::vector<Row*> drawing;
  std::vector<int> positions;
  int end = 0;
  for (const PassPart& part : parts) {
    end += part.num_tokens;
    if (part.row->num_left() <= part.num_tokens) {
      drawing.push_back(part.row);
      positions.push_back(end - 1);
    }
  }
  auto logits =
      forward(model, parts, positions.empty() ? std::vector{0} : positions);
  for (const PassPart& part : parts) {
    note_read(part);
    apply_quantization(*part.row->cache, part.row->options());
  }
  std::vector<RowFailure> failures;
  std::vector<mx::array> results;
  if (!drawing.empty()) {
    logits = mx::astype(mx::squeeze(logits, 0), mx::float32);
    failures = draw(drawing, logits);
    for (const Row* row : drawing) {
      if (!row->drawn) continue;
      results.push_back(row->drawn->token);
      results.push_back(row->drawn->logprobs);
    }
  }
  for (const PassPart& part : parts) {
    if (part.row->drawn) continue;
    for (const auto& layer : *part.row->cache) layer->append_arrays_to(results);
  }
  mx::async_eval(std::move(results));
  return failures;
}

}  // namespace mlxlm

#include "generate/suffix_automaton.h"

#include <algorithm>

namespace mlxlm {
namespace {

std::uint64_t key_of(int state, int token) {
  return std::uint64_t{static_cast<std::uint32_t>(state)} << 32 |
         static_cast<std::uint32_t>(token);
}

// States whose latest occurrence is kept up to date with each token: a text of
// one repeated token has as many as it has tokens.
constexpr int kMaxNoted = 32;

}  // namespace

SuffixAutomaton::SuffixAutomaton(int max_tokens)
    : max_tokens_(std::max(max_tokens, 2)), states_(1), tokens_of_(1) {}

int SuffixAutomaton::next(int state, int token) const {
  auto found = next_.find(key_of(state, token));
  return found == next_.end() ? -1 : found->second;
}

void SuffixAutomaton::set_next(int state, int token, int to) {
  auto [at, is_new] = next_.insert_or_assign(key_of(state, token), to);
  if (is_new) {
    tokens_of_[state].push_back(token);
  }
}

int SuffixAutomaton::clone_of(int state, int length) {
  const int clone = static_cast<int>(states_.size());
  states_.push_back({length, states_[state].link, states_[state].end});
  tokens_of_.emplace_back();
  for (std::size_t i = 0; i < tokens_of_[state].size(); ++i) {
    const int token = tokens_of_[state][i];
    set_next(clone, token, next(state, token));
  }
  return clone;
}

void SuffixAutomaton::append(int token) {
  if (static_cast<int>(text_.size()) >= max_tokens_) {
    forget_older_half();
  }
  text_.push_back(token);
  const int added = static_cast<int>(states_.size());
  states_.push_back(
      {states_[last_].length + 1, 0, static_cast<int>(text_.size())});
  tokens_of_.emplace_back();
  int from = last_;
  int to = -1;
  for (; from >= 0 && (to = next(from, token)) < 0; from = states_[from].link) {
    set_next(from, token, added);
  }
  if (from >= 0) {
    if (states_[to].length != states_[from].length + 1) {
      const int clone = clone_of(to, states_[from].length + 1);
      for (; from >= 0 && next(from, token) == to; from = states_[from].link) {
        set_next(from, token, clone);
      }
      states_[to].link = clone;
      to = clone;
    }
    states_[added].link = to;
  }
  // The ends of the text before this token are no longer the text's end.
  note_latest_ends();
  last_ = added;
}

// The strings that the text ended with before the newest token occurred there.
void SuffixAutomaton::note_latest_ends() {
  const int end = static_cast<int>(text_.size()) - 1;
  int state = last_;
  for (int i = 0; i < kMaxNoted && state > 0; ++i) {
    states_[state].end = end;
    state = states_[state].link;
  }
}

int SuffixAutomaton::match_length() const {
  const int link = states_[last_].link;
  return link < 0 ? 0 : states_[link].length;
}

std::vector<int> SuffixAutomaton::continuation(int count) const {
  std::vector<int> tokens;
  const int size = static_cast<int>(text_.size());
  if (match_length() == 0) {
    return tokens;
  }
  int from = states_[states_[last_].link].end;
  for (int i = from; static_cast<int>(tokens.size()) < count; ++i) {
    if (i == size) i = from;
    tokens.push_back(text_[i]);
  }
  return tokens;
}

void SuffixAutomaton::forget_older_half() {
  std::vector<int> newer(text_.begin() + max_tokens_ / 2, text_.end());
  *this = SuffixAutomaton(max_tokens_);
  for (int token : newer) {
    append(token);
  }
}

}  // namespace mlxlm

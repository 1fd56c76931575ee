// Where a growing text has said the same before.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace mlxlm {

// The automaton of all substrings (Blumer et al. 1985, The Smallest Automaton
// Recognizing the Subwords of a Text), built online: an appended token costs
// constant time on average. Memory is bounded: of a text longer than
// `max_tokens` the older half is forgotten, about 150 bytes a token at most.
class SuffixAutomaton {
 public:
  explicit SuffixAutomaton(int max_tokens);

  void append(int token);

  // Length of the longest end of the text that occurs earlier, too.
  int match_length() const;

  // What followed the latest such occurrence, up to `count` tokens. A text that
  // repeats itself goes on repeating.
  std::vector<int> continuation(int count) const;

 private:
  struct State {
    int length = 0;  // of the longest of its strings
    int link = -1;   // the state of their longest end that is in another state
    int end = 0;  // an occurrence ends before this position, the latest known
  };

  int next(int state, int token) const;  // -1: none
  void set_next(int state, int token, int to);
  int clone_of(int state, int length);
  void note_latest_ends();
  void forget_older_half();

  int max_tokens_;
  std::vector<int> text_;
  std::vector<State> states_;
  std::unordered_map<std::uint64_t, int> next_;
  // The tokens that lead on from each state: what a clone copies.
  std::vector<std::vector<int>> tokens_of_;
  int last_ = 0;
};

}  // namespace mlxlm

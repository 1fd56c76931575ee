// Drafts without a model: what followed the longest end of the text that
// occurred before (Saxena 2023, Prompt Lookup Decoding; Hu et al. 2024,
// SAM Decoding).
#include <algorithm>
#include <array>

#include "generate/drafter.h"
#include "generate/prefill.h"
#include "generate/suffix_automaton.h"

namespace mlxlm {
namespace {

// Of the text; 10 MB of automaton.
constexpr int kMaxTokens = 32768;

class NgramDrafter : public Drafter {
 public:
  void begin(const std::vector<int>& earlier) override { append(earlier); }
  void add_prompt(const std::vector<int>& tokens) override { append(tokens); }

  // The longer the match, the likelier that it goes on.
  int outlook() const override {
    static constexpr std::array<int, kNumOutlooks - 1> kLengths = {
        1, 2, 3, 4, 6, 10, 20};
    auto end = std::ranges::upper_bound(kLengths, automaton_.match_length());
    return static_cast<int>(end - kLengths.begin());
  }

  std::optional<Draft> propose(int count, const Sampling&) override {
    auto tokens = automaton_.continuation(count);
    if (tokens.empty()) {
      return std::nullopt;
    }
    return Draft{token_array(tokens)};
  }

  void accept(const std::vector<int>& tokens, int) override { append(tokens); }

 private:
  void append(const std::vector<int>& tokens) {
    for (int token : tokens) {
      automaton_.append(token);
    }
  }

  SuffixAutomaton automaton_{kMaxTokens};
};

}  // namespace

std::unique_ptr<Drafter> make_ngram_drafter() {
  return std::make_unique<NgramDrafter>();
}

}  // namespace mlxlm

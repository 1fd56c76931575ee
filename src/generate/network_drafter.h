// Drafters whose tokens a network makes, one after the other; what it reads of
// several texts it reads in one pass.
#pragma once

#include <optional>
#include <vector>

#include "generate/drafter.h"

namespace mlxlm {

// Of a prompt, tokens that wait until a draft is asked for, at most.
inline constexpr int kMaxWaiting = 64;

class NetworkDrafter : public Drafter {
 public:
  // What is to be read next of a text.
  struct Part {
    mx::array tokens;                 // [L] int32
    std::optional<mx::array> states;  // [1, L, D], for a head
    const PromptCache* cache;
  };
  // Of N texts, after the last token of each part.
  struct Pass {
    mx::array logits;                 // [N, V] float32
    std::optional<mx::array> states;  // [1, N, D], of a head
  };

  std::optional<Draft> propose(int count, const Sampling& sampling) override;
  NetworkDrafter* network() override { return this; }

  // Which network it is. It reads the parts of all drafters that have it.
  virtual const void* identity() const = 0;
  virtual Pass read(const std::vector<Part>& parts) const = 0;

  // A draft begins: the first part is what is unread of the text, further ones
  // are the tokens that are drawn, up to the last but one of `count`. False: it
  // can't begin.
  virtual bool begin_draft(int count) = 0;
  virtual Part next_part() const = 0;
  // That part was read, which left `state` [1, 1, D] if it is a head.
  virtual void note_read(const std::optional<mx::array>& state) = 0;
  virtual void go_on_with(const mx::array& token) = 0;  // [1]
  virtual void end_draft(const Draft& draft) = 0;

 protected:
  // The parts as one row of tokens: [1, sum L], the caches of all, and where
  // each ends.
  struct Row {
    mx::array tokens;
    std::optional<mx::array> states;
    PromptCache caches;
    std::vector<int> ends;
  };
  static Row join(const std::vector<Part>& parts);
};

}  // namespace mlxlm

// Ctrl-C. Generation ends after the step it is in; everything else, and
// generation that takes longer than a second to notice, at once.
#pragma once

#include <mlxlm/generate.h>

namespace mlxlm::cli {

// Ctrl-C ended the work: exit code 130, no message.
class Interrupted {};

// Takes over SIGINT, and ignores SIGPIPE so that a closed pipe is an error of
// the write.
void install_signal_handlers();

// From now on Ctrl-C ends the program at once, whatever it is doing.
void always_end_on_interrupt();

// Whether Ctrl-C was pressed.
bool interrupted();

// While it lives, the first Ctrl-C cancels generations with the token that it
// sets; the second ends the program.
class CancelOnInterrupt {
 public:
  explicit CancelOnInterrupt(CancelToken& token);
  ~CancelOnInterrupt();
  CancelOnInterrupt(const CancelOnInterrupt&) = delete;
  CancelOnInterrupt& operator=(const CancelOnInterrupt&) = delete;
};

// While it lives, the first Ctrl-C only makes interrupted() true, for an answer
// that stops there; the second ends the program. Before and afterwards there
// was none, and Ctrl-C does what it did: one may live within another.
class InterruptibleAnswer {
 public:
  InterruptibleAnswer();
  ~InterruptibleAnswer();
  InterruptibleAnswer(const InterruptibleAnswer&) = delete;
  InterruptibleAnswer& operator=(const InterruptibleAnswer&) = delete;

 private:
  int before_;
};

}  // namespace mlxlm::cli

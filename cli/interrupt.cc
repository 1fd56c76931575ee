#include "cli/interrupt.h"

#include <atomic>
#include <csignal>

#include <unistd.h>

#include "cli/console.h"
#include "cli/program.h"

namespace mlxlm::cli {
namespace {

constexpr unsigned kGraceSeconds = 1;

// What the first Ctrl-C does.
enum Reaction { kEnd, kCancel, kNote };

// Lock-free, as handlers must be.
std::atomic<int> interrupt_count{0};
std::atomic<int> reaction{kEnd};
std::atomic<bool> always_ends{false};
static_assert(std::atomic<int>::is_always_lock_free);

// Never destroyed: the handler may run on any thread at any time. It is set
// once, because the program ends then.
CancelToken& interrupt_token() {
  static auto* token = new CancelToken;
  return *token;
}

extern "C" void end_at_once(int) {
  clear_progress_in_handler();
  ::_exit(kInterrupted);
}

extern "C" void handle_interrupt(int signal) {
  if (interrupt_count++ > 0 || reaction == kEnd || always_ends) {
    end_at_once(signal);
  }
  if (reaction == kCancel) {
    interrupt_token().cancel();
    ::alarm(kGraceSeconds);
  }
}

void set_handler(int signal, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  // No SA_RESTART: a write that waits for its reader is to return.
  ::sigaction(signal, &action, nullptr);
}

}  // namespace

void install_signal_handlers() {
  interrupt_token();  // made before a handler needs it
  set_handler(SIGINT, handle_interrupt);
  set_handler(SIGALRM, end_at_once);
  set_handler(SIGPIPE, SIG_IGN);
}

void always_end_on_interrupt() { always_ends = true; }

bool interrupted() { return interrupt_count > 0; }

CancelOnInterrupt::CancelOnInterrupt(CancelToken& token) {
  token = interrupt_token();
  reaction = kCancel;
}

CancelOnInterrupt::~CancelOnInterrupt() { reaction = kEnd; }

InterruptibleAnswer::InterruptibleAnswer() : before_(reaction) {
  interrupt_count = 0;
  reaction = kNote;
}

InterruptibleAnswer::~InterruptibleAnswer() {
  reaction = before_;
  interrupt_count = 0;
}

}  // namespace mlxlm::cli

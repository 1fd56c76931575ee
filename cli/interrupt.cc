#include "cli/interrupt.h"

#include <atomic>
#include <csignal>
#include <utility>

#include <unistd.h>

#include "cli/console.h"
#include "cli/program.h"

namespace mlxlm::cli {
namespace {

constexpr unsigned kGraceSeconds = 1;

// Lock-free, as handlers must be.
std::atomic<int> interrupt_count{0};
std::atomic<CancelToken*> cancelled_by_interrupt{nullptr};
static_assert(std::atomic<int>::is_always_lock_free);
static_assert(std::atomic<CancelToken*>::is_always_lock_free);

extern "C" void end_at_once(int) {
  clear_progress_in_handler();
  ::_exit(kInterrupted);
}

extern "C" void handle_interrupt(int signal) {
  CancelToken* token = cancelled_by_interrupt;
  if (interrupt_count++ > 0 || token == nullptr) {
    end_at_once(signal);
  }
  token->cancel();
  ::alarm(kGraceSeconds);
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
  set_handler(SIGINT, handle_interrupt);
  set_handler(SIGALRM, end_at_once);
  set_handler(SIGPIPE, SIG_IGN);
}

bool interrupted() { return interrupt_count > 0; }

CancelOnInterrupt::CancelOnInterrupt(CancelToken token)
    : token_(std::move(token)) {
  cancelled_by_interrupt = &token_;
}

CancelOnInterrupt::~CancelOnInterrupt() { cancelled_by_interrupt = nullptr; }

}  // namespace mlxlm::cli

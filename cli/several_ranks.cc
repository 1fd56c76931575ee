#include "cli/several_ranks.h"

#include <cstdlib>

#include <mlx/backend/cuda/cuda.h>

#include <mlxlm/error.h>
#include <mlxlm/sample.h>

#include "cli/console.h"
#include "cli/interrupt.h"
#include "ranks/rank_environment.h"
#include "ranks/ranks.h"

namespace mlxlm::cli {
namespace {

bool joined = false;

}  // namespace

void see_one_gpu() {
  if (!mlx::core::cu::is_available() ||
      read_rank_environment(process_environment).size > 1) {
    return;
  }
  constexpr char kVisible[] = "CUDA_VISIBLE_DEVICES";
  const char* given = std::getenv(kVisible);
  const std::string visible = given != nullptr ? given : "0";
  ::setenv(kVisible, visible.substr(0, visible.find(',')).c_str(), 1);
}

void join_ranks() {
  const auto& ranks = Ranks::all();
  joined = ranks.several();
  if (!joined) return;
  speak_as_rank(ranks.rank());
  always_end_on_interrupt();
  seed(ranks.shared_random_number());
}

void require_one_rank(const std::string& what, const std::string& why) {
  const auto ranks = read_rank_environment(process_environment);
  if (ranks.size == 1) return;
  throw Error(ErrorKind::unsupported,
              what + " doesn't work on several ranks (there are " +
                  std::to_string(ranks.size) + "): " + why);
}

void leave_ranks() {
  if (joined) Ranks::all().finish();
}

void end_ranks(const std::string& fault) {
  if (joined) Ranks::all().give_up(fault);
}

}  // namespace mlxlm::cli

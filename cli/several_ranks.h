// The program as one of several ranks (ranks/ranks.h) that do the same.
#pragma once

#include <string>

namespace mlxlm::cli {

// Meets the others, if there are any. From then on only rank 0 writes answers
// and notes and reads standard input, all draw the same random numbers, and
// Ctrl-C ends the program at once, as ranks wouldn't stop at the same token.
void join_ranks();

// A process alone uses the first GPU that it may, and isn't to see others:
// where MLX sees several, a copy from the first one's memory to the CPU was
// seen to fail. Before anything is asked of a GPU.
void see_one_gpu();

// Throws Error{unsupported} on several ranks: "WHAT doesn't work on several
// ranks: WHY".
void require_one_rank(const std::string& what, const std::string& why);

// The work is done: the others needn't wonder where this process went.
void leave_ranks();

// After a fault of MLX; nothing on one rank alone. Ends the process: with the
// loss of another rank as the message if that was the reason, and without
// letting go of what the GPU may still work on.
void end_ranks(const std::string& fault);

}  // namespace mlxlm::cli

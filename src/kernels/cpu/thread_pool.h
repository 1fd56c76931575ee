// The threads that one CPU kernel is spread over.
#pragma once

#include <functional>

namespace mlxlm::kernels::cpu {

// Threads in use, the caller's included: MLX_LM_THREADS, else the processors
// this process may run on.
int num_threads();

// Calls task(i) for every i in [0, num_tasks), on any thread in any order, and
// returns when all have returned. Tasks must not throw; those that call this do
// all of it themselves. One caller at a time; others wait. Idle workers spin
// for some microseconds, then sleep, so that other programs on the same cores
// lose little.
void parallel_for(int num_tasks, const std::function<void(int)>& task);

}  // namespace mlxlm::kernels::cpu

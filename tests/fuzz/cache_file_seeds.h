// Good cache files, for damage to begin with.
#pragma once

#include <string>
#include <vector>

#include <mlxlm/cache.h>

namespace mlxlm {

// One layer of each kind, with as little data as it can have.
std::vector<PromptCache> seeds_of_all_kinds();
// What the toy model of the fuzzing has read, stored in different ways.
std::vector<PromptCache> seeds_of_the_toy_model();

// With metadata.
void save_as_seed(const std::string& path, const PromptCache& cache);

}  // namespace mlxlm

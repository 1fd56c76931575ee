// The reference's commands seed the generator before they load the model, and
// building a model draws a number for each matrix, which the weights then
// replace. To give the same tokens for the same seed, so much is skipped.
#pragma once

#include <mlxlm/model.h>

namespace mlxlm::cli {

// How many numbers the reference draws while it builds the model.
int count_construction_draws(const Model& model);

// Draws as many from MLX's default generator.
void skip_construction_draws(const Model& model);

}  // namespace mlxlm::cli

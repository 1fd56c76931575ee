// What is wrong with a model, for tests.
#pragma once

#include <string>

#include <gtest/gtest.h>

#include <mlxlm/error.h>

#include "models/make_model.h"

namespace mlxlm {

// The message of the Error{kind} that making the model throws.
inline std::string fault(Checkpoint checkpoint,
                         ErrorKind kind,
                         const LoadOptions& options = {}) {
  try {
    make_model(std::move(checkpoint), options);
  } catch (const Error& error) {
    EXPECT_EQ(name_of(error.kind()), name_of(kind)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace mlxlm

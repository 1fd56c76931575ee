// Checks that a call throws mlxlm::Error of a kind, with a part of its message.
#pragma once

#include <string>

#include <gtest/gtest.h>

#include <mlxlm/error.h>

namespace mlxlm {

template <typename Call>
void expect_error(ErrorKind kind, const std::string& part, Call call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with \"" << part << '"';
  } catch (const Error& error) {
    EXPECT_EQ(name_of(error.kind()), name_of(kind)) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
        << error.what();
  }
}

}  // namespace mlxlm

#include "tests/support/test_data.h"

namespace mlxlm {

std::filesystem::path test_data(std::string_view name) {
  return std::filesystem::path(MLXLM_TEST_DATA) / name;
}

}  // namespace mlxlm

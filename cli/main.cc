#include <string>
#include <vector>

#include "cli/program.h"

int main(int argc, char** argv) {
  return mlxlm::cli::run(std::vector<std::string>(argv, argv + argc));
}

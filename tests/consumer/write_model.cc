// write_model FOLDER: a tiny model with a tokenizer.
#include <filesystem>

#include "tests/support/model_writer.h"

int main(int, char** arguments) {
  std::filesystem::create_directories(arguments[1]);
  mlxlm::write_tiny_model(arguments[1]);
}

#include <iostream>

#include <mlxlm/generate.h>

int main(int, char** arguments) {
  auto [model, tokenizer] = mlxlm::load(arguments[1]);
  for (const auto& part :
       mlxlm::stream_generate(model, tokenizer, "Once upon a time")) {
    std::cout << part.text << std::flush;
  }
}

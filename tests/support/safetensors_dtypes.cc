#include "tests/support/safetensors_dtypes.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>

#include <nlohmann/json.hpp>

#include "tests/support/model_writer.h"

namespace mlxlm {

void set_dtypes(const std::filesystem::path& file,
                const std::map<std::string, std::string>& dtypes) {
  std::ifstream in(file, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(in), {});
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  auto header = nlohmann::json::parse(bytes.substr(sizeof(length), length));
  for (const auto& [name, dtype] : dtypes) header.at(name)["dtype"] = dtype;
  const auto text = header.dump();
  const std::uint64_t new_length = text.size();
  std::string start(sizeof(new_length), '\0');
  std::memcpy(start.data(), &new_length, sizeof(new_length));
  write_text(file, start + text + bytes.substr(sizeof(length) + length));
}

}  // namespace mlxlm

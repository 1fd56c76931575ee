#include "load/safetensors.h"

#include <algorithm>
#include <string_view>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm {
namespace {

constexpr std::string_view kReadable[] = {"BOOL",
                                          "U8",
                                          "I8",
                                          "F8_E4M3",
                                          "F8_E8M0",
                                          "I16",
                                          "U16",
                                          "F16",
                                          "BF16",
                                          "I32",
                                          "U32",
                                          "F32",
                                          "C64",
                                          "I64",
                                          "U64"};

}  // namespace

Weights load_safetensors(const std::filesystem::path& path,
                         const SafetensorsHeader& header) {
  for (const SafetensorsTensor& tensor : header.tensors) {
    if (std::find(std::begin(kReadable), std::end(kReadable), tensor.dtype) ==
        std::end(kReadable)) {
      throw Error(ErrorKind::unsupported,
                  path.string() + ": tensor \"" + tensor.name +
                      "\" has dtype " + tensor.dtype +
                      ", which MLX can't read; convert it to F32, F16 or BF16");
    }
  }
  try {
    return mx::load_safetensors(path.string()).first;
  } catch (const std::exception& error) {
    throw Error(ErrorKind::file,
                "cannot read " + path.string() + ": " + error.what());
  }
}

Weights load_safetensors(const std::filesystem::path& path) {
  return load_safetensors(path, read_safetensors_header(path));
}

}  // namespace mlxlm

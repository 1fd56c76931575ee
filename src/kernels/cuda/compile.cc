#include "kernels/cuda/compile.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <sstream>
#include <vector>

#include <dlfcn.h>

#include <mlxlm/error.h>

#include "core/environment.h"
#include "core/file.h"
#include "kernels/cuda/device.h"

namespace mlxlm::kernels::cuda {
namespace {

// NVRTC's functions, found in what MLX has loaded: its headers are not part of
// a build.
struct Compiler {
  using Program = void*;
  int (*version)(int* major, int* minor) = nullptr;
  int (*create)(Program* program,
                const char* source,
                const char* name,
                int num_headers,
                const char* const* headers,
                const char* const* include_names) = nullptr;
  int (*compile)(Program program,
                 int num_options,
                 const char* const* options) = nullptr;
  int (*destroy)(Program* program) = nullptr;
  int (*log_size)(Program program, std::size_t* bytes) = nullptr;
  int (*log)(Program program, char* text) = nullptr;
  int (*binary_size)(Program program, std::size_t* bytes) = nullptr;
  int (*binary)(Program program, char* bytes) = nullptr;
  int (*assembly_size)(Program program, std::size_t* bytes) = nullptr;
  int (*assembly)(Program program, char* text) = nullptr;
  int (*num_architectures)(int* count) = nullptr;
  int (*architectures)(int* numbers) = nullptr;

  bool complete() const {
    return version && create && compile && destroy && log_size && log &&
           binary_size && binary && assembly_size && assembly &&
           num_architectures && architectures;
  }
};

Compiler find_compiler() {
  void* library = nullptr;
  for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12"}) {
    if (library == nullptr) library = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
  }
  Compiler found;
  if (library == nullptr) return found;
  auto take = [&](auto& function, const char* name) {
    using Function = std::remove_reference_t<decltype(function)>;
    function = reinterpret_cast<Function>(dlsym(library, name));
  };
  take(found.version, "nvrtcVersion");
  take(found.create, "nvrtcCreateProgram");
  take(found.compile, "nvrtcCompileProgram");
  take(found.destroy, "nvrtcDestroyProgram");
  take(found.log_size, "nvrtcGetProgramLogSize");
  take(found.log, "nvrtcGetProgramLog");
  take(found.binary_size, "nvrtcGetCUBINSize");
  take(found.binary, "nvrtcGetCUBIN");
  take(found.assembly_size, "nvrtcGetPTXSize");
  take(found.assembly, "nvrtcGetPTX");
  take(found.num_architectures, "nvrtcGetNumSupportedArchs");
  take(found.architectures, "nvrtcGetSupportedArchs");
  return found;
}

const Compiler& compiler() {
  static const Compiler kCompiler = find_compiler();
  if (!kCompiler.complete()) {
    throw Error(
        ErrorKind::unsupported,
        "CUDA kernels need NVIDIA's run-time compiler (libnvrtc), which "
        "MLX's CUDA build comes with, and it was not found; "
        "MLX_LM_KERNELS=reference does without");
  }
  return kCompiler;
}

std::string compile_now(const std::string& source,
                        const std::string& architecture) {
  const Compiler& nvrtc = compiler();
  Compiler::Program program = nullptr;
  if (nvrtc.create(&program, source.c_str(), "mlxlm.cu", 0, nullptr, nullptr) !=
      0) {
    throw Error(ErrorKind::internal, "NVRTC makes no program");
  }
  const std::unique_ptr<Compiler::Program, int (*)(Compiler::Program*)> owner(
      &program, nvrtc.destroy);
  const std::string target = "--gpu-architecture=" + architecture;
  // Older compilers take generic lambdas for functions of the host.
  const std::array<const char*, 3> options{
      target.c_str(), "--std=c++17", "--device-as-default-execution-space"};
  const int failure =
      nvrtc.compile(program, static_cast<int>(options.size()), options.data());
  std::size_t size = 0;
  if (failure != 0) {
    nvrtc.log_size(program, &size);
    std::string log(size, ' ');
    nvrtc.log(program, log.data());
    throw Error(ErrorKind::internal,
                "a CUDA kernel doesn't compile for " + architecture + ":\n" +
                    log.c_str());
  }
  const bool is_virtual = architecture.starts_with("compute_");
  std::string code;
  if ((is_virtual ? nvrtc.assembly_size : nvrtc.binary_size)(program, &size) ==
      0) {
    code.resize(size);
    const auto read = is_virtual ? nvrtc.assembly : nvrtc.binary;
    if (read(program, code.data()) == 0 && size > 0) return code;
  }
  throw Error(ErrorKind::internal, "NVRTC gives no code for " + architecture);
}

std::vector<int> known_architectures() {
  const Compiler& nvrtc = compiler();
  int count = 0;
  nvrtc.num_architectures(&count);
  std::vector<int> numbers(count);
  nvrtc.architectures(numbers.data());
  return numbers;
}

// What a kept file begins with: all that its content depends on.
std::string origin_of(const std::string& source,
                      const std::string& architecture) {
  int major = 0;
  int minor = 0;
  compiler().version(&major, &minor);
  std::ostringstream text;
  text << "mlx-lm kernel, " << architecture << ", NVRTC " << major << '.'
       << minor << ", " << source.size() << '\n'
       << source << '\n';
  return text.str();
}

}  // namespace

std::string compile(const std::string& source,
                    const std::string& architecture) {
  const auto folder =
      user_cache_folder(process_environment) / "mlx-lm" / "cuda";
  if (!folder.is_absolute()) return compile_now(source, architecture);
  const std::string origin = origin_of(source, architecture);
  std::ostringstream name;
  name << std::hex << std::hash<std::string>{}(origin) << ".kernel";
  const auto path = folder / name.str();
  try {
    if (file_exists(path)) {
      auto kept = read_file(path);
      if (kept.size() > origin.size() && kept.starts_with(origin)) {
        return kept.substr(origin.size());
      }
    }
  } catch (const Error&) {
    // Made anew below.
  }
  const std::string binary = compile_now(source, architecture);
  try {
    std::filesystem::create_directories(folder);
    write_file_atomically(path, origin + binary);
  } catch (const std::exception&) {
    // The next process compiles again.
  }
  return binary;
}

std::string gpu_architecture() {
  const auto& limits = device_limits();
  const int major = limits.compute_capability_major;
  if (major == 0) return "";
  const int number = major * 10 + limits.compute_capability_minor;
  int newest = 0;  // that the compiler knows, up to this one
  for (int each : known_architectures()) {
    if (each <= number) newest = std::max(newest, each);
  }
  if (newest < number) return "compute_" + std::to_string(newest);
  constexpr int kHopper = 9;  // from which on there is code for one GPU alone
  return "sm_" + std::to_string(number) + (major >= kHopper ? "a" : "");
}

}  // namespace mlxlm::kernels::cuda

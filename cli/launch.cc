// mlx-lm launch: several ranks of one machine, as mlx.launch starts them.
#include "cli/launch.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <mlx/distributed/distributed.h>
#include <mlx/mlx.h>
#include <netinet/in.h>
#include <nlohmann/json.hpp>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <mlxlm/error.h>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/console.h"

namespace mlxlm::cli {
namespace {

namespace mx = mlx::core;

constexpr char kAddress[] = "127.0.0.1";
constexpr char kExamples[] = R"(Examples:
  mlx-lm launch -n 2 -- generate --model org/name --prompt "Hi"
  mlx-lm launch -n 2 --backend ring -- benchmark -p 512 -g 128

Each rank holds its part of the weights and caches. Several machines:
mlx.launch, which comes with MLX's Python package, starts this program, too.)";

[[noreturn]] void throw_system(const std::string& what) {
  throw Error(ErrorKind::internal,
              "cannot " + what + ": " + std::strerror(errno));
}

// Ports that nobody listens at now.
std::vector<int> free_ports(int count) {
  std::vector<int> sockets;
  std::vector<int> ports;
  for (int i = 0; i < count; ++i) {
    sockets.push_back(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    ::inet_pton(AF_INET, kAddress, &address.sin_addr);
    socklen_t length = sizeof(address);
    auto* any = reinterpret_cast<sockaddr*>(&address);
    if (sockets.back() < 0 || ::bind(sockets.back(), any, length) != 0 ||
        ::getsockname(sockets.back(), any, &length) != 0) {
      throw_system("find a free port");
    }
    ports.push_back(ntohs(address.sin_port));
  }
  for (int socket : sockets) ::close(socket);
  return ports;
}

// The hostfile of the ring, which goes with this object.
class Hostfile {
 public:
  explicit Hostfile(const std::vector<int>& ports) {
    auto hosts = nlohmann::json::array();
    for (int port : ports) {
      hosts.push_back({std::string(kAddress) + ":" + std::to_string(port)});
    }
    path_ = (std::filesystem::temp_directory_path() / "mlx-lm-hosts-XXXXXX")
                .string();
    const int file = ::mkstemp(path_.data());
    const auto text = hosts.dump();
    if (file < 0 || ::write(file, text.data(), text.size()) !=
                        static_cast<ssize_t>(text.size())) {
      throw_system("write " + path_);
    }
    ::close(file);
  }
  ~Hostfile() { ::unlink(path_.c_str()); }
  Hostfile(const Hostfile&) = delete;
  Hostfile& operator=(const Hostfile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

using Variables = std::map<std::string, std::string>;

// Rank i's GPU: the i-th of those that may be used.
std::string device_of(int rank) {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr) return std::to_string(rank);
  std::istringstream list(visible);
  std::string device;
  for (int i = 0; i <= rank; ++i) {
    if (!std::getline(list, device, ',')) {
      throw Error(ErrorKind::argument,
                  "there are more ranks than GPUs in CUDA_VISIBLE_DEVICES (" +
                      std::string(visible) + ")");
    }
  }
  return device;
}

// The process's environment with these variables, "NAME=value" each.
std::vector<std::string> environment_with(const Variables& variables) {
  std::vector<std::string> all;
  for (char** each = environ; *each != nullptr; ++each) {
    const std::string line = *each;
    if (!variables.contains(line.substr(0, line.find('=')))) {
      all.push_back(line);
    }
  }
  for (const auto& [name, value] : variables) {
    all.push_back(name + "=" + value);
  }
  return all;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (auto& text : texts) all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

std::string own_program() {
  std::error_code fault;
  auto path = std::filesystem::read_symlink("/proc/self/exe", fault);
  if (fault) {
    throw Error(ErrorKind::unsupported,
                "launch can't find the program's own file on this system; use "
                "mlx.launch");
  }
  return path.string();
}

// This program again; `first` keeps standard input.
pid_t start(std::vector<std::string> arguments,
            const Variables& variables,
            bool first) {
  auto environment = environment_with(variables);
  auto argument_pointers = pointers(arguments);
  auto environment_pointers = pointers(environment);
  const pid_t child = ::fork();
  if (child < 0) throw_system("start a process");
  if (child > 0) return child;
  if (!first) {
    const int nothing = ::open("/dev/null", O_RDONLY);
    if (nothing >= 0) ::dup2(nothing, STDIN_FILENO);
  }
  ::execve(argument_pointers[0],
           argument_pointers.data(),
           environment_pointers.data());
  ::_exit(127);
}

class Launch {
 public:
  void add_to(CLI::App& command);
  void run();

 private:
  bool uses_nccl() const;
  Variables variables_of(int rank, bool nccl) const;

  int num_ranks_ = 2;
  std::string backend_;
  std::vector<std::string> words_;
  std::vector<int> ports_;
  std::string hostfile_;
};

void Launch::add_to(CLI::App& command) {
  constexpr char kGroup[] = "Ranks";
  command.add_option("-n,--num-ranks", num_ranks_, "Processes to start")
      ->capture_default_str()
      ->type_name("N")
      ->group(kGroup);
  command
      .add_option("--backend",
                  backend_,
                  "nccl (GPUs) or ring (anywhere); the first that\nthere is")
      ->type_name("NAME")
      ->group(kGroup);
  command.add_option("command", words_, "What each of them runs, after \"--\"")
      ->take_all()
      ->type_name("COMMAND");
  command.footer(kExamples);
}

bool Launch::uses_nccl() const {
  if (backend_.empty()) {
    return mx::distributed::is_available("nccl") &&
           mx::default_device() == mx::Device::gpu;
  }
  if (backend_ != "nccl" && backend_ != "ring") {
    throw UsageError("--backend is nccl or ring, not " + backend_);
  }
  return backend_ == "nccl";
}

Variables Launch::variables_of(int rank, bool nccl) const {
  Variables variables{{"MLX_RANK", std::to_string(rank)}};
  if (nccl) {
    variables["MLX_WORLD_SIZE"] = std::to_string(num_ranks_);
    variables["NCCL_HOST_IP"] = kAddress;
    variables["NCCL_PORT"] = std::to_string(ports_[0]);
    variables["CUDA_VISIBLE_DEVICES"] = device_of(rank);
  } else {
    variables["MLX_HOSTFILE"] = hostfile_;
  }
  // They share the cores.
  if (std::getenv("MLX_LM_THREADS") == nullptr) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    variables["MLX_LM_THREADS"] =
        std::to_string(std::max(1, cores / num_ranks_));
  }
  return variables;
}

// Waits for all; when one fails, the others end by themselves, or are ended.
// The exit code of the first that failed.
int wait_for(std::vector<pid_t> running) {
  constexpr unsigned kGraceSeconds = 10;
  int code = 0;
  while (!running.empty()) {
    int status = 0;
    const pid_t ended = ::waitpid(-1, &status, 0);
    if (ended < 0 && errno == EINTR) {
      // The alarm: time is up.
      for (pid_t each : running) ::kill(each, SIGKILL);
      continue;
    }
    if (ended < 0) throw_system("wait for the ranks");
    std::erase(running, ended);
    const int own =
        WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (own == 0 || code != 0) continue;
    code = own;
    ::alarm(kGraceSeconds);
  }
  ::alarm(0);
  return code;
}

void Launch::run() {
  check_at_least("--num-ranks", num_ranks_, 1);
  if (words_.empty()) {
    throw UsageError("launch needs a command: mlx-lm launch -n 2 -- generate");
  }
  const bool nccl = uses_nccl();
  ports_ = free_ports(num_ranks_);
  const Hostfile hostfile(ports_);
  hostfile_ = hostfile.path();
  auto arguments = words_;
  arguments.insert(arguments.begin(), own_program());
  std::vector<Variables> variables;
  for (int i = 0; i < num_ranks_; ++i) {
    variables.push_back(variables_of(i, nccl));
  }
  // Ctrl-C goes to the ranks as well, which end by it.
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  ::sigaction(SIGALRM, &action, nullptr);
  std::vector<pid_t> ranks;
  for (int i = 0; i < num_ranks_; ++i) {
    ranks.push_back(start(arguments, variables[i], i == 0));
  }
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGINT, &action, nullptr);
  if (const int code = wait_for(std::move(ranks))) throw RanksFailed{code};
}

}  // namespace

Command add_launch(CLI::App& command) { return command_of<Launch>(command); }

}  // namespace mlxlm::cli

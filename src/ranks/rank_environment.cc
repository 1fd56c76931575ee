#include "ranks/rank_environment.h"

#include <charconv>

#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

#include "core/file.h"
#include "core/json.h"

namespace mlxlm {
namespace {

constexpr int kMostRanks = 1024;

int number_of(const char* variable, const std::string& text, int end) {
  int value = -1;
  auto [rest, fault] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (fault != std::errc() || rest != text.data() + text.size() || value < 0 ||
      value >= end) {
    throw Error(ErrorKind::argument,
                std::string(variable) + " is \"" + text +
                    "\"; it must be a number from 0 to " +
                    std::to_string(end - 1));
  }
  return value;
}

[[noreturn]] void refuse_hostfile(const std::string& path) {
  throw Error(ErrorKind::argument,
              "MLX_HOSTFILE: " + path +
                  " must hold a list of addresses for each rank: "
                  "[[\"127.0.0.1:5000\"], [\"127.0.0.1:5001\"]]");
}

// mlx.launch writes an empty file for one process alone.
RankEnvironment read_hostfile(const std::string& path) {
  const auto text = read_file(path);
  if (text.find_first_not_of(" \r\n") == std::string::npos) return {};
  const auto hosts = parse_json(text, path, {}, ErrorKind::argument);
  if (!hosts.is_array() || hosts.empty()) refuse_hostfile(path);
  for (const auto& addresses : hosts) {
    if (!addresses.is_array() || addresses.empty()) refuse_hostfile(path);
    for (const auto& address : addresses) {
      if (!address.is_string() ||
          address.get<std::string>().find(':') == std::string::npos) {
        refuse_hostfile(path);
      }
    }
  }
  const auto first = hosts[0][0].get<std::string>();
  return {.size = static_cast<int>(hosts.size()),
          .backend = "ring",
          .host = first.substr(0, first.find(':'))};
}

}  // namespace

RankEnvironment read_rank_environment(const Environment& environment) {
  const auto rank = environment("MLX_RANK");
  const auto hostfile = environment("MLX_HOSTFILE");
  const auto size = environment("MLX_WORLD_SIZE");
  const auto host = environment("NCCL_HOST_IP");
  if (rank.empty()) return {};
  RankEnvironment found;
  if (!size.empty() && !host.empty()) {
    found = {.size = number_of("MLX_WORLD_SIZE", size, kMostRanks + 1),
             .backend = "nccl",
             .host = host};
    number_of("NCCL_PORT", environment("NCCL_PORT"), 65536);
  } else if (!hostfile.empty()) {
    found = read_hostfile(hostfile);
  }
  if (found.size < 1 || found.size > kMostRanks) {
    throw Error(ErrorKind::argument,
                std::to_string(found.size) + " ranks are named; 1 to " +
                    std::to_string(kMostRanks) + " are possible");
  }
  if (found.size == 1) return {};
  found.rank = number_of("MLX_RANK", rank, found.size);
  return found;
}

}  // namespace mlxlm

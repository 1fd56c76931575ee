#include "ranks/side_channel.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <mlxlm/error.h>

namespace mlxlm {
namespace {

// A message: its kind, the length of what follows (or a number), the text.
enum Kind : std::uint32_t { kText, kFinished, kLost };
struct Header {
  std::uint32_t kind = kText;
  std::uint32_t value = 0;
};
struct Greeting {
  std::uint64_t secret = 0;
  std::uint64_t rank = 0;
};

constexpr auto kMostUntilOwnEnd = std::chrono::milliseconds(300);

#ifdef MSG_NOSIGNAL
constexpr int kSendFlags = MSG_NOSIGNAL;
#else
constexpr int kSendFlags = 0;
#endif

[[noreturn]] void throw_system(const std::string& what) {
  throw Error(ErrorKind::network,
              "between ranks: cannot " + what + ": " + std::strerror(errno));
}

bool send_all(int socket, const void* data, std::size_t size) {
  auto* next = static_cast<const char*>(data);
  while (size > 0) {
    const auto sent = ::send(socket, next, size, kSendFlags);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    next += sent;
    size -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool receive_all(int socket, void* data, std::size_t size) {
  auto* next = static_cast<char*>(data);
  while (size > 0) {
    const auto received = ::recv(socket, next, size, 0);
    if (received < 0 && errno == EINTR) continue;
    if (received <= 0) return false;
    next += received;
    size -= static_cast<std::size_t>(received);
  }
  return true;
}

bool send_message(int socket, Header header, const std::string& text = "") {
  return send_all(socket, &header, sizeof(header)) &&
         send_all(socket, text.data(), text.size());
}

// Calls `use` with an open socket for each address of the host until it
// answers true.
template <class Use>
int socket_for(const std::string& host, int port, const Use& use) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const auto service = std::to_string(port);
  if (int fault =
          ::getaddrinfo(host.c_str(), service.c_str(), &hints, &found)) {
    throw Error(ErrorKind::network,
                "between ranks: there is no host " + host + ": " +
                    ::gai_strerror(fault));
  }
  int made = -1;
  for (auto* each = found; each != nullptr && made < 0; each = each->ai_next) {
    made = ::socket(each->ai_family, each->ai_socktype, 0);
    if (made >= 0 && !use(made, each->ai_addr, each->ai_addrlen)) {
      const int fault = errno;
      ::close(made);
      errno = fault;
      made = -1;
    }
  }
  ::freeaddrinfo(found);
  return made;
}

// What a peer on another machine that went down leaves no word of.
void keep_alive(int socket) {
  const int on = 1;
  ::setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

}  // namespace

void end_rank(const std::string& message) {
  const auto line = "mlx-lm: error: " + message + "\n";
  [[maybe_unused]] auto ignored =
      ::write(STDERR_FILENO, line.data(), line.size());
  ::_exit(1);
}

SideChannel::SideChannel(const std::string& host) {
  listener_ = socket_for(host, 0, [](int s, sockaddr* address, socklen_t n) {
    return ::bind(s, address, n) == 0 && ::listen(s, SOMAXCONN) == 0;
  });
  if (listener_ < 0) throw_system("listen at " + host);
  sockaddr_storage bound = {};
  socklen_t length = sizeof(bound);
  std::array<char, NI_MAXSERV> service = {};
  if (::getsockname(listener_, reinterpret_cast<sockaddr*>(&bound), &length) !=
          0 ||
      ::getnameinfo(reinterpret_cast<sockaddr*>(&bound),
                    length,
                    nullptr,
                    0,
                    service.data(),
                    service.size(),
                    NI_NUMERICSERV) != 0) {
    throw_system("find the port");
  }
  port_ = std::atoi(service.data());
}

void SideChannel::accept_all(int size, std::uint64_t secret) {
  size_ = size;
  std::vector<bool> here(size, false);
  while (static_cast<int>(peers_.size()) + 1 < size) {
    const int socket = ::accept(listener_, nullptr, nullptr);
    if (socket < 0 && errno == EINTR) continue;
    if (socket < 0) throw_system("take a connection");
    Greeting greeting;
    const bool known = receive_all(socket, &greeting, sizeof(greeting)) &&
                       greeting.secret == secret && greeting.rank > 0 &&
                       greeting.rank < static_cast<std::uint64_t>(size) &&
                       !here[greeting.rank];
    if (!known) {
      ::close(socket);
      continue;
    }
    here[greeting.rank] = true;
    keep_alive(socket);
    peers_.push_back({static_cast<int>(greeting.rank), socket});
  }
  ::close(listener_);
  listener_ = -1;
}

SideChannel::SideChannel(
    const std::string& host, int port, int rank, int size, std::uint64_t secret)
    : rank_(rank), size_(size) {
  const int socket =
      socket_for(host, port, [](int s, sockaddr* address, socklen_t n) {
        return ::connect(s, address, n) == 0;
      });
  if (socket < 0) throw_system("reach rank 0 at " + host);
  keep_alive(socket);
  peers_.push_back({0, socket});
  const Greeting greeting{secret, static_cast<std::uint64_t>(rank)};
  if (!send_all(socket, &greeting, sizeof(greeting))) {
    throw_system("greet rank 0");
  }
}

SideChannel::~SideChannel() {
  if (watch_.joinable()) {
    [[maybe_unused]] auto ignored = ::write(wake_[1], "", 1);
    watch_.join();
  }
  for (int each : {listener_, wake_[0], wake_[1]}) {
    if (each >= 0) ::close(each);
  }
  for (const auto& peer : peers_) ::close(peer.socket);
}

void SideChannel::watch() {
  if (::pipe(wake_) != 0) throw_system("make a pipe");
  watch_ = std::thread([this] { watch_peers(); });
}

void SideChannel::watch_peers() {
  while (true) {
    std::vector<pollfd> waiting{{wake_[0], POLLIN, 0}};
    for (const auto& peer : peers_) {
      waiting.push_back({peer.finished ? -1 : peer.socket, POLLIN, 0});
    }
    if (::poll(waiting.data(), waiting.size(), -1) < 0) continue;
    if (waiting[0].revents != 0) return;
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      auto& peer = peers_[i];
      if (waiting[i + 1].revents != 0 && !take_message(peer)) {
        end_all(peer.rank);
      }
    }
  }
}

bool SideChannel::take_message(Peer& peer) {
  Header header;
  if (!receive_all(peer.socket, &header, sizeof(header))) return false;
  if (header.kind == kFinished) {
    peer.finished = true;
    return true;
  }
  if (header.kind == kLost) end_all(static_cast<int>(header.value));
  std::string text(header.value, '\0');
  if (!receive_all(peer.socket, text.data(), text.size())) return false;
  {
    std::lock_guard lock(mutex_);
    texts_.push_back(std::move(text));
  }
  arrived_.notify_one();
  return true;
}

void SideChannel::end_all(int lost_rank) {
  // What ended that rank, an option or Ctrl-C, may be about to end this one.
  std::this_thread::sleep_for(kMostUntilOwnEnd);
  if (rank_ == 0) {
    for (const auto& peer : peers_) {
      if (peer.rank == lost_rank || peer.finished) continue;
      send_message(peer.socket, {kLost, static_cast<std::uint32_t>(lost_rank)});
    }
  }
  end_rank("rank " + std::to_string(rank_) + " of " + std::to_string(size_) +
           " gives up: rank " + std::to_string(lost_rank) +
           " has ended before its work was done");
}

std::string SideChannel::share(const std::string& text) {
  if (rank_ == 0) {
    const Header header{kText, static_cast<std::uint32_t>(text.size())};
    for (const auto& peer : peers_) send_message(peer.socket, header, text);
    return text;
  }
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return !texts_.empty(); });
  auto first = std::move(texts_.front());
  texts_.pop_front();
  return first;
}

void SideChannel::finish() {
  for (const auto& peer : peers_) send_message(peer.socket, {kFinished, 0});
}

}  // namespace mlxlm

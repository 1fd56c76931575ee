#include "tests/hub/server.h"

#include <algorithm>
#include <cctype>
#include <csignal>
#include <stdexcept>

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace mlxlm {
namespace {

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) {
    return static_cast<char>(std::tolower(c));
  });
  return text;
}

Request parse(std::string_view head) {
  Request request;
  std::size_t begin = 0;
  while (begin < head.size()) {
    auto end = head.find("\r\n", begin);
    std::string line(head.substr(begin, end - begin));
    begin = end + 2;
    if (request.method.empty()) {
      auto first = line.find(' ');
      auto second = line.find(' ', first + 1);
      request.method = line.substr(0, first);
      request.path = line.substr(first + 1, second - first - 1);
    } else if (auto colon = line.find(':'); colon != line.npos) {
      auto value = line.find_first_not_of(' ', colon + 1);
      request.headers[lower(line.substr(0, colon))] =
          value == line.npos ? "" : line.substr(value);
    }
  }
  return request;
}

// Children of the test must not hold it open.
int not_inherited(int socket) {
  if (socket >= 0) {
    ::fcntl(socket, F_SETFD, FD_CLOEXEC);
  }
  return socket;
}

sockaddr_in loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<in_port_t>(port));
  return address;
}

}  // namespace

std::string Request::header(const std::string& name) const {
  auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

std::size_t Request::range_start() const {
  std::string range = header("range");
  return range.starts_with("bytes=") ? std::stoul(range.substr(6)) : 0;
}

bool Connection::send(std::string_view bytes) {
  while (!bytes.empty()) {
    ssize_t count = ::send(socket_, bytes.data(), bytes.size(), 0);
    if (count <= 0) {
      closed_ = true;
      return false;
    }
    bytes.remove_prefix(static_cast<std::size_t>(count));
  }
  return true;
}

bool Connection::answer(std::string_view status,
                        std::string_view headers,
                        std::string_view body) {
  return send("HTTP/1.1 " + std::string(status) + "\r\n" +
              std::string(headers) + "Content-Length: " +
              std::to_string(body.size()) + "\r\n\r\n" + std::string(body));
}

void Connection::wait_for_end() {
  char byte;
  while (::recv(socket_, &byte, 1, 0) > 0) {
  }
  closed_ = true;
}

bool Connection::read_request(Request& request) {
  constexpr std::size_t kMaxHeadBytes = 1 << 16;
  std::size_t end;
  while ((end = buffer_.find("\r\n\r\n")) == buffer_.npos) {
    char chunk[4096];
    ssize_t count = ::recv(socket_, chunk, sizeof(chunk), 0);
    if (count <= 0 || buffer_.size() > kMaxHeadBytes) {
      return false;
    }
    buffer_.append(chunk, static_cast<std::size_t>(count));
  }
  request = parse(std::string_view(buffer_).substr(0, end + 2));
  buffer_.erase(0, end + 4);
  return true;
}

Server::Server(Handler handler) : handler_(std::move(handler)) {
  std::signal(SIGPIPE, SIG_IGN);  // clients that go away
  listener_ = not_inherited(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address = loopback(0);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (listener_ < 0 || ::bind(listener_, generic, size) != 0 ||
      ::listen(listener_, 64) != 0 ||
      ::getsockname(listener_, generic, &size) != 0) {
    throw std::runtime_error("cannot listen on the loopback address");
  }
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { accept_connections(); });
}

Server::~Server() {
  stopping_ = true;
  // Wakes accept() on every system, which shutdown() doesn't.
  sockaddr_in address = loopback(port_);
  int last = not_inherited(::socket(AF_INET, SOCK_STREAM, 0));
  ::connect(last, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  acceptor_.join();
  ::close(last);
  ::close(listener_);
  {
    std::lock_guard lock(mutex_);
    for (int socket : sockets_) {
      ::shutdown(socket, SHUT_RDWR);
    }
  }
  for (std::thread& thread : threads_) {
    thread.join();
  }
  for (int socket : sockets_) {
    ::close(socket);
  }
}

std::string Server::url() const {
  return "http://127.0.0.1:" + std::to_string(port_);
}

std::vector<Request> Server::requests() const {
  std::lock_guard lock(mutex_);
  return requests_;
}

void Server::accept_connections() {
  while (!stopping_) {
    int socket = not_inherited(::accept(listener_, nullptr, nullptr));
    if (socket < 0) {
      continue;
    }
    std::lock_guard lock(mutex_);
    sockets_.push_back(socket);
    threads_.emplace_back([this, socket] { serve(socket); });
  }
}

// The socket is only shut down here; its number stays taken until the end, so
// that the destructor never touches another's.
void Server::serve(int socket) {
  Connection connection(socket);
  Request request;
  while (!connection.closed() && connection.read_request(request)) {
    {
      std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    handler_(request, connection);
  }
  ::shutdown(socket, SHUT_RDWR);
}

}  // namespace mlxlm

// An HTTP server on this machine whose answers are written byte by byte, so
// that they can be as wrong as a test wants.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace mlxlm {

struct Request {
  std::string method;
  std::string path;
  std::map<std::string, std::string> headers;  // names in lower case

  // A header's value, "" if it isn't there.
  std::string header(const std::string& name) const;
  // Where a "bytes=N-" range begins; 0 without one.
  std::size_t range_start() const;
};

class Connection {
 public:
  explicit Connection(int socket) : socket_(socket) {}

  // False once the other side is gone.
  bool send(std::string_view bytes);
  // "HTTP/1.1 STATUS", the headers (each ending in \r\n), the body's length,
  // and the body.
  bool answer(std::string_view status,
              std::string_view headers = "",
              std::string_view body = "");
  // Waits until the other side or the server ends the connection.
  void wait_for_end();
  // Ends it after this answer.
  void close() { closed_ = true; }

  bool closed() const { return closed_; }
  bool read_request(Request& request);

 private:
  int socket_;
  bool closed_ = false;
  std::string buffer_;
};

class Server {
 public:
  // Called on a thread per connection.
  using Handler = std::function<void(const Request&, Connection&)>;

  explicit Server(Handler handler);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  std::string url() const;
  // All requests so far.
  std::vector<Request> requests() const;

 private:
  void accept_connections();
  void serve(int socket);

  Handler handler_;
  int listener_ = -1;
  std::uint16_t port_ = 0;
  mutable std::mutex mutex_;
  std::vector<Request> requests_;
  std::vector<int> sockets_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopping_ = false;
  std::thread acceptor_;
};

}  // namespace mlxlm

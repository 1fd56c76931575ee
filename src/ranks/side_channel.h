// Connections of rank 0 to every other rank, beside MLX's own: they tell at
// once when a process has died, which a collective operation would wait for
// without end, and carry texts that rank 0 has and the others need.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace mlxlm {

// Ends this process with a message on standard error and exit code 1: what a
// rank does when another is lost, as nothing can be saved then and an operation
// on the GPU that waits for the other can't be called off.
[[noreturn]] void end_rank(const std::string& message);

class SideChannel {
 public:
  // Rank 0 listens at a free port of `host`...
  explicit SideChannel(const std::string& host);
  int port() const { return port_; }
  // ...and takes those of the `size` - 1 others that know the `secret`.
  void accept_all(int size, std::uint64_t secret);
  // Another rank comes there.
  SideChannel(const std::string& host,
              int port,
              int rank,
              int size,
              std::uint64_t secret);
  ~SideChannel();
  SideChannel(const SideChannel&) = delete;
  SideChannel& operator=(const SideChannel&) = delete;

  // From now on a connection that ends without finish() on its other side
  // calls end_rank().
  void watch();

  // Rank 0's text, at every rank.
  std::string share(const std::string& text);

  // This rank needs the others no more, nor they it.
  void finish();

 private:
  struct Peer {
    int rank = 0;
    int socket = -1;
    bool finished = false;
  };

  void watch_peers();
  // Reads one message; whether the connection still stands.
  bool take_message(Peer& peer);
  [[noreturn]] void end_all(int lost_rank);

  int rank_ = 0;
  int size_ = 1;
  int listener_ = -1;
  int port_ = 0;
  int wake_[2] = {-1, -1};  // a pipe that ends the watch
  std::vector<Peer> peers_;
  std::thread watch_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<std::string> texts_;
};

}  // namespace mlxlm

#include "kernels/cuda/peer_memory.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <type_traits>

#include <dlfcn.h>

namespace mlxlm::kernels::cuda {
namespace {

using Address = std::uint64_t;
using Context = void*;

// What another process opens memory with.
struct Handle {
  std::array<char, 64> bytes = {};
};

// The driver's functions: its headers are not part of a build.
struct Driver {
  int (*retain)(Context* context, int device) = nullptr;
  int (*release)(int device) = nullptr;
  int (*push)(Context context) = nullptr;
  int (*pop)(Context* context) = nullptr;
  int (*wait)() = nullptr;
  int (*allocate)(Address* address, std::size_t bytes) = nullptr;
  int (*free)(Address address) = nullptr;
  int (*fill)(Address address,
              unsigned char value,
              std::size_t bytes) = nullptr;
  int (*identify)(std::array<char, 16>* id, int device) = nullptr;
  int (*share)(Handle* handle, Address address) = nullptr;
  int (*open)(Address* address, Handle handle, unsigned flags) = nullptr;
  int (*close)(Address address) = nullptr;
  bool complete = true;

  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    auto take = [&](auto& function, const char* name) {
      using Function = std::remove_reference_t<decltype(function)>;
      if (library != nullptr) {
        function = reinterpret_cast<Function>(dlsym(library, name));
      }
      complete = complete && function != nullptr;
    };
    take(retain, "cuDevicePrimaryCtxRetain");
    take(release, "cuDevicePrimaryCtxRelease_v2");
    take(push, "cuCtxPushCurrent_v2");
    take(pop, "cuCtxPopCurrent_v2");
    take(wait, "cuCtxSynchronize");
    take(allocate, "cuMemAlloc_v2");
    take(free, "cuMemFree_v2");
    take(fill, "cuMemsetD8_v2");
    take(identify, "cuDeviceGetUuid_v2");
    take(share, "cuIpcGetMemHandle");
    take(open, "cuIpcOpenMemHandle_v2");
    take(close, "cuIpcCloseMemHandle");
  }
};

const Driver& driver() {
  static const Driver kDriver;
  return kDriver;
}

// MLX's context, for as long as this lives.
class CurrentContext {
 public:
  CurrentContext() {
    Context context = nullptr;
    if (!driver().complete || driver().retain(&context, 0) != 0) return;
    current_ = driver().push(context) == 0;
    if (!current_) driver().release(0);
  }
  ~CurrentContext() {
    if (!current_) return;
    Context context = nullptr;
    driver().pop(&context);
    driver().release(0);
  }
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

  bool current() const { return current_; }

 private:
  bool current_ = false;
};

// What a rank tells the others: which boot of which host it runs on, its GPU
// and its memory there. Empty: it takes no part.
struct Greeting {
  std::array<char, 36> host = {};
  std::array<char, 16> device = {};
  Handle memory;
};
static_assert(std::is_trivially_copyable_v<Greeting>);

std::string text_of(const Greeting& greeting) {
  return {reinterpret_cast<const char*>(&greeting), sizeof greeting};
}

bool all_say(const StepRanks& ranks, bool own) {
  const auto answers = ranks.gather(own ? "y" : "n");
  return std::ranges::all_of(answers, [](const auto& a) { return a == "y"; });
}

}  // namespace

std::unique_ptr<PeerMemory> PeerMemory::make(const StepRanks& ranks,
                                             std::size_t bytes) {
  std::unique_ptr<PeerMemory> made(new PeerMemory(ranks.rank));
  made->addresses_.resize(ranks.count);
  if (!all_say(ranks, bytes > 0 && made->take(bytes))) return nullptr;
  const bool opened = made->open(ranks.gather(made->greeting()));
  return all_say(ranks, opened) ? std::move(made) : nullptr;
}

bool PeerMemory::take(std::size_t bytes) {
  const CurrentContext context;
  Address& own = addresses_[rank_];
  return context.current() && driver().allocate(&own, bytes) == 0 &&
         driver().fill(own, 0, bytes) == 0 && driver().wait() == 0;
}

std::string PeerMemory::greeting() const {
  const CurrentContext context;
  Greeting made;
  std::ifstream boot("/proc/sys/kernel/random/boot_id");
  boot.read(made.host.data(), made.host.size());
  if (!boot || !context.current() || driver().identify(&made.device, 0) != 0 ||
      driver().share(&made.memory, addresses_[rank_]) != 0) {
    return text_of({});
  }
  return text_of(made);
}

bool PeerMemory::open(const std::vector<std::string>& greetings) {
  const CurrentContext context;
  if (!context.current()) return false;
  constexpr unsigned kEnablePeerAccess = 1;
  std::set<std::array<char, 16>> devices;
  for (std::size_t i = 0; i < greetings.size(); ++i) {
    Greeting other;
    Greeting first;
    std::memcpy(&other, greetings[i].data(), sizeof other);
    std::memcpy(&first, greetings[0].data(), sizeof first);
    if (greetings[i] == text_of({}) || other.host != first.host ||
        !devices.insert(other.device).second) {
      return false;
    }
    if (static_cast<int>(i) != rank_ &&
        driver().open(&addresses_[i], other.memory, kEnablePeerAccess) != 0) {
      addresses_[i] = 0;
      return false;
    }
  }
  return true;
}

PeerMemory::~PeerMemory() {
  const CurrentContext context;
  if (!context.current()) return;
  for (std::size_t i = 0; i < addresses_.size(); ++i) {
    if (addresses_[i] == 0) continue;
    static_cast<int>(i) == rank_ ? driver().free(addresses_[i])
                                 : driver().close(addresses_[i]);
  }
}

}  // namespace mlxlm::kernels::cuda

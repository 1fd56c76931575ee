// Engine: one thread that owns the batch, and handles for everybody else.
//
// Invariant: only the engine's thread touches the batch. Others leave requests
// in `queued_` and take parts out of their own handle.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include <mlxlm/batch.h>

#include "cache/settle.h"
#include "core/log.h"
#include "generate/options.h"

namespace mlxlm {

class PendingAnswer::Impl {
 public:
  void put(GenerationResponse part) {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = !part.finish_reason.empty();
    parts_.push_back(std::move(part));
    changed_.notify_all();
  }

  void fail(std::exception_ptr error) {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    error_ = std::move(error);
    changed_.notify_all();
  }

  std::optional<GenerationResponse> next(
      std::optional<std::chrono::milliseconds> time) {
    std::unique_lock lock(mutex_);
    auto ready = [&] { return !parts_.empty() || ended_; };
    if (time) {
      changed_.wait_for(lock, *time, ready);
    } else {
      changed_.wait(lock, ready);
    }
    if (!parts_.empty()) {
      auto part = std::move(parts_.front());
      parts_.pop_front();
      return part;
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    return std::nullopt;
  }

  bool ended() const {
    std::lock_guard lock(mutex_);
    return ended_ && parts_.empty() && !error_;
  }

  void cancel() { cancelled_ = true; }
  bool cancelled() const { return cancelled_; }

 private:
  std::atomic<bool> cancelled_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<GenerationResponse> parts_;
  bool ended_ = false;
  std::exception_ptr error_;
};

PendingAnswer::PendingAnswer(std::shared_ptr<Impl> impl)
    : impl_(std::move(impl)) {}

PendingAnswer& PendingAnswer::operator=(PendingAnswer&& other) noexcept {
  if (this != &other) {
    if (impl_) impl_->cancel();
    impl_ = std::move(other.impl_);
  }
  return *this;
}

PendingAnswer::~PendingAnswer() {
  if (impl_) impl_->cancel();
}

PendingAnswer::Impl& PendingAnswer::impl() const {
  if (!impl_) {
    throw Error(ErrorKind::argument, "the answer's handle was moved from");
  }
  return *impl_;
}

std::optional<GenerationResponse> PendingAnswer::next() {
  return impl().next(std::nullopt);
}

std::optional<GenerationResponse> PendingAnswer::next_within(
    std::chrono::milliseconds time) {
  return impl().next(time);
}

bool PendingAnswer::ended() const { return impl().ended(); }

std::string PendingAnswer::text() {
  std::string text;
  while (auto part = next()) text += part->text;
  return text;
}

void PendingAnswer::cancel() { impl().cancel(); }

namespace {

// Arrays of the caller's thread, which only that can compute.
void settle_inputs(const GenerateOptions& options) {
  if (options.input_embeddings) settle({*options.input_embeddings});
  if (options.prompt_cache != nullptr) settle(*options.prompt_cache);
}

// Where a row's parts go.
struct Receiver {
  RowId id;
  PromptCache* cache;                           // the caller's, or null
  std::shared_ptr<PendingAnswer::Impl> handle;  // or:
  Engine::OnPart on_part;

  void put(BatchPart part) const {
    part.row = id;
    if (!handle) return on_part(part);
    if (part.part.finish_reason == "error") {
      handle->fail(
          std::make_exception_ptr(Error(ErrorKind::argument, part.error)));
    } else {
      handle->put(std::move(part.part));
    }
  }

  // From the last part on it is the caller's again.
  void settle_cache() const {
    if (cache != nullptr) settle(*cache);
  }

  void fail(const Error& error) const {
    if (handle) return handle->fail(std::make_exception_ptr(error));
    BatchPart part{id, {}, error.what()};
    part.part.token = -1;
    part.part.finish_reason = "error";
    on_part(part);
  }
};

struct Queued {
  BatchRequest request;
  Receiver receiver;
};

}  // namespace

class Engine::Impl {
 public:
  Impl(ModelPtr model, TokenizerPtr tokenizer, const EngineOptions& options)
      : options_(options) {
    check_at_least("max_queued", options.max_queued, 1);
    // Made here, so that its options are refused here; the thread's from then
    // on, and gone with it.
    thread_ = std::thread(
        [this,
         batch = BatchGenerator(
             std::move(model), std::move(tokenizer), options.batch)]() mutable {
          run(batch);
        });
  }

  ~Impl() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // Returns the id, or none if there is no room and `wait` is false.
  std::optional<RowId> submit(BatchRequest request,
                              std::shared_ptr<PendingAnswer::Impl> handle,
                              OnPart on_part,
                              bool wait) {
    settle_inputs(request.options);
    std::unique_lock lock(mutex_);
    auto room = [&] {
      return stopping_ ||
             queued_.size() < static_cast<std::size_t>(options_.max_queued);
    };
    if (!wait && !room()) return std::nullopt;
    changed_.wait(lock, room);
    if (stopping_) {
      throw Error(ErrorKind::cancelled, "the engine is shutting down");
    }
    const RowId id = next_id_++;
    ++num_rows_;
    PromptCache* cache = request.options.prompt_cache;
    queued_.push_back({std::move(request),
                       {id, cache, std::move(handle), std::move(on_part)}});
    changed_.notify_all();
    return id;
  }

  BatchStats stats() const {
    std::lock_guard lock(mutex_);
    return stats_;
  }

  std::size_t num_rows() const { return num_rows_; }

 private:
  void run(BatchGenerator& batch) {
    while (wait_for_work(batch.empty())) {
      take_over(batch);
      drop_cancelled(batch);
      for (auto& part : batch.next()) deliver(batch, std::move(part));
      std::lock_guard lock(mutex_);
      stats_ = batch.stats();
    }
    batch.close();
    end_all();
  }

  // False when the engine stops.
  bool wait_for_work(bool idle) {
    std::unique_lock lock(mutex_);
    if (idle) {
      changed_.wait(lock, [&] { return stopping_ || !queued_.empty(); });
    }
    return !stopping_;
  }

  void take_over(BatchGenerator& batch) {
    std::deque<Queued> queued;
    {
      std::lock_guard lock(mutex_);
      queued.swap(queued_);
    }
    changed_.notify_all();
    for (auto& [request, receiver] : queued) {
      try {
        const RowId row = batch.insert(std::move(request));
        receivers_.emplace(row, std::move(receiver));
      } catch (const Error& error) {
        --num_rows_;
        receiver.fail(error);
      }
    }
  }

  void drop_cancelled(BatchGenerator& batch) {
    std::erase_if(receivers_, [&](const auto& each) {
      const auto& [row, receiver] = each;
      if (!receiver.handle || !receiver.handle->cancelled()) return false;
      batch.remove(row);
      --num_rows_;
      receiver.settle_cache();
      receiver.put(cancelled_part());
      return true;
    });
  }

  void deliver(BatchGenerator& batch, BatchPart part) {
    auto found = receivers_.find(part.row);
    if (found == receivers_.end()) return;  // its callback threw in this pass
    auto& logprobs = part.part.logprobs;
    if (!options_.logprobs) {
      logprobs.reset();
    } else if (logprobs) {
      settle({*logprobs});
    }
    const bool last = !part.part.finish_reason.empty();
    try {
      if (last) found->second.settle_cache();
      found->second.put(std::move(part));
      if (!last) return;
    } catch (const std::exception& error) {
      log_warning(std::string("a callback threw, its request ends: ") +
                  error.what());
      if (!last) batch.remove(found->first);
    }
    receivers_.erase(found);
    --num_rows_;
  }

  void end_all() {
    std::vector<Receiver> left;
    for (auto& [row, receiver] : receivers_) left.push_back(receiver);
    {
      std::lock_guard lock(mutex_);
      for (auto& each : queued_) left.push_back(each.receiver);
      queued_.clear();
    }
    for (const Receiver& receiver : left) {
      try {
        receiver.put(cancelled_part());
      } catch (const std::exception& error) {
        log_warning(std::string("a callback threw: ") + error.what());
      }
    }
    num_rows_ = 0;
  }

  static BatchPart cancelled_part() {
    BatchPart part;
    part.part.token = -1;
    part.part.finish_reason = "cancelled";
    return part;
  }

  EngineOptions options_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Queued> queued_;
  RowId next_id_ = 0;
  bool stopping_ = false;
  BatchStats stats_;
  std::atomic<std::size_t> num_rows_ = 0;

  std::map<RowId, Receiver> receivers_;  // the thread's, by the batch's ids
  std::thread thread_;
};

Engine::Engine(ModelPtr model,
               TokenizerPtr tokenizer,
               const EngineOptions& options)
    : impl_(std::make_unique<Impl>(
          std::move(model), std::move(tokenizer), options)) {}
Engine::~Engine() = default;

PendingAnswer Engine::submit(BatchRequest request) {
  auto handle = std::make_shared<PendingAnswer::Impl>();
  impl_->submit(std::move(request), handle, {}, /*wait=*/true);
  return PendingAnswer(std::move(handle));
}

std::optional<PendingAnswer> Engine::try_submit(BatchRequest request) {
  auto handle = std::make_shared<PendingAnswer::Impl>();
  if (!impl_->submit(std::move(request), handle, {}, /*wait=*/false)) {
    return std::nullopt;
  }
  return PendingAnswer(std::move(handle));
}

RowId Engine::submit(BatchRequest request, OnPart on_part) {
  return *impl_->submit(
      std::move(request), nullptr, std::move(on_part), /*wait=*/true);
}

BatchStats Engine::stats() const { return impl_->stats(); }
std::size_t Engine::num_rows() const { return impl_->num_rows(); }

}  // namespace mlxlm

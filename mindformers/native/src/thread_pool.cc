// SPDX-License-Identifier: Apache-2.0
#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#include "custom_op.h"
#include "scheduling.h"

namespace mf {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kPauses = 2000;  // some tens of microseconds: longer than the end of a chunk that is being computed
using Clock = std::chrono::steady_clock;
constexpr auto kSpin = std::chrono::microseconds(50);  // longer than the gap between two operators of a graph
// A wait this long, and several times as long as the caller's own part of the work, is for a worker the system does
// not run. Two such waits soon after one another mean that somebody else is busy on the worker's core. For a while the
// workers then work in bursts and sleep in between: who uses less than half of a core is hardly interrupted in the
// middle of a chunk, and while they sleep the caller does all the work.
constexpr Clock::duration kStall = std::chrono::microseconds(300);
constexpr int kStallShare = 4;
constexpr Clock::duration kSoon = std::chrono::milliseconds(100);
constexpr Clock::duration kContended = std::chrono::milliseconds(200);
constexpr auto kBurst = std::chrono::microseconds(150);
constexpr auto kRest = std::chrono::microseconds(300);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Worker threads around one word: call number (32 bits) | chunks (16) | next chunk (16). A chunk belongs to whoever
// raises the last field by compare-and-exchange. The call number keeps a late worker from taking a chunk of a call
// it has not read the function of; the caller leaves only when all chunks are done, so a taken chunk's call is alive.
class Pool {
 public:
  explicit Pool(int workers) {
    for (int i = 0; i < workers; ++i) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::exception&) {
        break;  // the system gives no more threads: the caller takes their chunks
      }
    }
  }

  void run(int chunks, void (*chunk)(void*, int), void* context) {
    const Clock::time_point begin = Clock::now();
    if (busy_.exchange(true, std::memory_order_acquire)) {
      for (int i = 0; i < chunks; ++i) chunk(context, i);
      return;
    }
    if (begin < contended_until_.load(std::memory_order_relaxed)) caller_core_.store(sched_getcpu());
    chunk_ = chunk;
    context_ = context;
    error_ = nullptr;
    done_.store(0, std::memory_order_relaxed);
    ++call_;
    state_.store(static_cast<uint64_t>(call_) << 32 | static_cast<uint64_t>(chunks) << 16);
    if (sleepers_.load() > 0) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }
      wake_.notify_all();
    }
    take_chunks(call_);
    for (int spins = 0; spins < kPauses && done_.load(std::memory_order_acquire) < chunks; ++spins) pause();
    if (done_.load(std::memory_order_acquire) < chunks) {
      const Clock::duration own = Clock::now() - begin;
      sleep_until_done(chunks);
      note_wait(own, Clock::now() - begin - own);
    }
    const std::exception_ptr error = error_;
    busy_.store(false, std::memory_order_release);
    if (error) std::rethrow_exception(error);
  }

 private:
  void take_chunks(uint32_t call) {
    for (;;) {
      uint64_t state = state_.load(std::memory_order_acquire);
      const int chunks = static_cast<int>(state >> 16 & 0xffff);
      const int next = static_cast<int>(state & 0xffff);
      if (static_cast<uint32_t>(state >> 32) != call || next >= chunks) return;
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
      try {
        chunk_(context_, next);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
      done_.fetch_add(1);
      if (caller_sleeps_.load()) {
        {
          std::lock_guard<std::mutex> lock(mutex_);
        }
        finished_.notify_one();
      }
    }
  }

  // The system runs something else in place of a worker that holds a chunk. To yield would give the core away for as
  // long as its neighbour likes; who sleeps is run again soon after being woken.
  void sleep_until_done(int chunks) {
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    finished_.wait(lock, [&] { return done_.load() >= chunks; });
    caller_sleeps_.store(false);
  }

  // The caller worked for `own` and then waited for `wait`.
  void note_wait(Clock::duration own, Clock::duration wait) {
    if (wait < kStall || wait < kStallShare * own) return;
    const Clock::time_point now = Clock::now();
    if (now - last_stall_ < kSoon) contended_until_.store(now + kContended, std::memory_order_relaxed);
    last_stall_ = now;
  }

  uint32_t current_call() const { return static_cast<uint32_t>(state_.load(std::memory_order_acquire) >> 32); }

  // Sleep when a burst is over, away from the caller's core; `burst` is when it began.
  void rest_if_contended(Clock::time_point& burst, Placement& placement) {
    const Clock::time_point now = Clock::now();
    if (now >= contended_until_.load(std::memory_order_relaxed)) {
      placement.restore();
    } else if (now - burst >= kBurst) {
      placement.avoid(caller_core_.load(std::memory_order_relaxed));
      std::this_thread::sleep_for(kRest);
      burst = Clock::now();
    }
  }

  void serve() {
    ask_for_short_turns();
    Placement placement;
    Clock::time_point burst{};
    uint32_t last = 0;
    for (;;) {
      rest_if_contended(burst, placement);
      const auto until = Clock::now() + kSpin;
      while (current_call() == last) {
        for (int i = 0; i < 64 && current_call() == last; ++i) pause();
        if (current_call() != last || Clock::now() < until) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return static_cast<uint32_t>(state_.load() >> 32) != last; });
        sleepers_.fetch_sub(1);
      }
      last = current_call();
      take_chunks(last);
    }
  }

  std::atomic<uint64_t> state_{0};
  std::atomic<int> done_{0};
  std::atomic<bool> busy_{false};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<Clock::time_point> contended_until_{Clock::time_point{}};
  std::atomic<int> caller_core_{-1};
  Clock::time_point last_stall_{};
  uint32_t call_ = 0;
  void (*chunk_)(void*, int) = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
  std::mutex mutex_;
  std::condition_variable wake_;      // work for sleeping workers
  std::condition_variable finished_;  // all chunks done, for a sleeping caller
};

// Not OMP_NUM_THREADS: importing MindSpore sets it to 1 for itself. native/library.py reads what the user set.
int default_threads() {
  cpu_set_t set;
  const int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::min(cores, kMaxThreads);
}

std::atomic<int> g_threads{0};
std::atomic<Pool*> g_pool{nullptr};  // never deleted: its threads wait for work until the process ends
std::atomic<int> g_pool_threads{0};
std::mutex g_create;

// A forked child has no worker threads and perhaps locked mutexes: it begins with a pool of its own.
void after_fork() {
  g_pool.store(nullptr);
  new (&g_create) std::mutex;
}

Pool& pool(int threads) {
  Pool* current = g_pool.load(std::memory_order_acquire);
  if (current != nullptr && g_pool_threads.load() == threads) return *current;
  static const int registered = pthread_atfork(nullptr, nullptr, after_fork);
  (void)registered;
  std::lock_guard<std::mutex> lock(g_create);
  current = g_pool.load();
  if (current == nullptr || g_pool_threads.load() != threads) {
    current = new Pool(threads - 1);
    g_pool_threads.store(threads);
    g_pool.store(current, std::memory_order_release);
  }
  return *current;
}

}  // namespace

int num_threads() {
  int threads = g_threads.load(std::memory_order_relaxed);
  if (threads == 0) {
    threads = default_threads();
    g_threads.store(threads, std::memory_order_relaxed);
  }
  return threads;
}

void set_num_threads(int count) { g_threads.store(count <= 0 ? default_threads() : std::min(count, kMaxThreads)); }

void run_chunks(int chunks, void (*chunk)(void*, int), void* context) {
  if (chunks > 0xffff) throw OpError("a call of more than 65535 chunks");
  const int threads = num_threads();
  if (threads == 1 || chunks <= 1) {
    for (int i = 0; i < chunks; ++i) chunk(context, i);
    return;
  }
  pool(threads).run(chunks, chunk, context);
}

}  // namespace mf

// 0 or less: one per core this process may use.
MF_EXPORT void mindformers_native_set_threads(int count) { mf::set_num_threads(count); }
MF_EXPORT int mindformers_native_threads() { return mf::num_threads(); }

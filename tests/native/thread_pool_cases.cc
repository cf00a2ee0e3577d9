// SPDX-License-Identifier: Apache-2.0
// The thread pool: every chunk is computed once, whatever workers do, and workers are left where they were.
#include <sched.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "campaign.h"
#include "thread_pool.h"

namespace {

using campaign::expect;

int cores_of_this_thread() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : -1;
}

void sleep(int microseconds) { std::this_thread::sleep_for(std::chrono::microseconds(microseconds)); }

// Some calls whose chunks take a while on workers: as if the system ran something else in their place.
void calls(campaign::Random& random, int count, int delay) {
  const std::thread::id caller = std::this_thread::get_id();
  for (int i = 0; i < count; ++i) {
    std::vector<std::atomic<int>> done(static_cast<size_t>(random.whole(1, 40)));
    mf::for_each_chunk(static_cast<int>(done.size()), [&](int chunk) {
      sleep(std::this_thread::get_id() == caller ? 20 : 20 + delay);
      ++done[static_cast<size_t>(chunk)];
    });
    bool once = true;
    for (const auto& times : done) once = once && times == 1;
    expect("every chunk is computed once", once);
  }
}

}  // namespace

MF_CASE(ThreadPool) {
  const int chunks = static_cast<int>(random.whole(0, 40));
  std::vector<std::atomic<int>> visits(static_cast<size_t>(chunks));
  mf::for_each_chunk(chunks, [&](int i) {
    visits[i].fetch_add(1);
    mf::for_each_chunk(2, [&](int) { visits[i].fetch_add(1); });  // inside a chunk: on this thread alone
  });
  for (auto& count : visits) expect("every chunk is done once", count.load() == 3);
  bool thrown = false;
  try {
    mf::for_each_chunk(chunks + 1, [&](int i) {
      if (i == chunks / 2) throw std::runtime_error("chunk");
    });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  expect("an error of a chunk reaches the caller", thrown);
  int64_t covered = 0;
  const int64_t n = random.whole(1, 100), grain = random.whole(1, 9);
  for (int i = 0; i < 7; ++i) covered += mf::part_of(n, 7, i, grain).end - mf::part_of(n, 7, i, grain).begin;
  expect("the parts cover everything", covered == n);
}

MF_CASE(ThreadPoolBesideANeighbour) {
  if (mf::num_threads() == 1 || random.chance(0.95)) return;
  const int cores = cores_of_this_thread();
  calls(random, 4, 3000);
  calls(random, 20, 0);
  sleep(250 * 1000);  // longer than the pool remembers
  std::mutex mutex;
  std::set<int> seen;
  for (int i = 0; i < 5; ++i) {
    calls(random, 1, 0);
    mf::for_each_chunk(16, [&](int) {
      sleep(100);
      if (i < 4) return;  // workers move back before their next call
      std::lock_guard<std::mutex> lock(mutex);
      seen.insert(cores_of_this_thread());
    });
  }
  expect("threads may run where they could run before", seen == std::set<int>{cores});
}

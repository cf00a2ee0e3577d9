// SPDX-License-Identifier: Apache-2.0
// The threads that share one kernel's work.
//
// A call is cut into chunks whose borders depend on the problem and the number of threads only, so results do not
// depend on who computes a chunk. The calling thread takes every chunk no worker has started: a worker that the
// system does not run delays a call by the chunk it holds and no more. A call made while the pool is busy (MindSpore
// launches operators side by side) or from inside a chunk runs on its own thread alone.
#ifndef MINDFORMERS_NATIVE_THREAD_POOL_H_
#define MINDFORMERS_NATIVE_THREAD_POOL_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace mf {

// Threads a call is shared by, the calling one included.
int num_threads();
void set_num_threads(int count);

// chunk(i) for i in [0, chunks), in any order, on several threads; returns when all are done. An exception a chunk
// throws is thrown again here.
void run_chunks(int chunks, void (*chunk)(void* context, int index), void* context);

template <class F>
void for_each_chunk(int chunks, F&& body) {
  using Body = std::remove_reference_t<F>;
  run_chunks(
      chunks, [](void* context, int index) { (*static_cast<Body*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Borders of part `index` of `parts` of [0, n), at multiples of `grain`.
struct Range {
  int64_t begin;
  int64_t end;
};
inline Range part_of(int64_t n, int parts, int index, int64_t grain = 1) {
  const int64_t units = (n + grain - 1) / grain;
  const int64_t begin = units * index / parts * grain;
  const int64_t end = units * (index + 1) / parts * grain;
  return {std::min(begin, n), std::min(end, n)};
}

// body(begin, end, part): one contiguous part of [0, n) per thread, for sums that are combined part by part.
// Returns the number of parts, at most num_threads().
template <class F>
int for_each_part(int64_t n, int64_t grain, F&& body) {
  const int64_t units = (n + grain - 1) / grain;
  const int parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(num_threads(), units)));
  for_each_chunk(parts, [&](int part) {
    const Range range = part_of(n, parts, part, grain);
    if (range.begin < range.end) body(range.begin, range.end, part);
  });
  return parts;
}

// body(begin, end): more chunks than threads, so that they end together. For rows that do not depend on each other.
template <class F>
void for_each_range(int64_t n, int64_t grain, F&& body) {
  const int64_t units = (n + grain - 1) / grain;
  const int64_t wanted = num_threads() == 1 ? 1 : 4 * num_threads();
  const int parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(wanted, units)));
  for_each_chunk(parts, [&](int part) {
    const Range range = part_of(n, parts, part, grain);
    if (range.begin < range.end) body(range.begin, range.end);
  });
}

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_THREAD_POOL_H_

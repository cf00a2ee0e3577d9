// SPDX-License-Identifier: Apache-2.0
#include "scheduling.h"

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace mf {
namespace {

constexpr uint64_t kTurn = 100 * 1000;       // nanoseconds, the shortest Linux takes
constexpr unsigned long kTimerSlack = 1000;  // nanoseconds

// struct sched_attr of sched_setattr(2), first version; the C library has no name for it before glibc 2.41.
struct SchedulingAttributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime;  // of a thread without real-time policy: length of its turns
  uint64_t deadline;
  uint64_t period;
};

}  // namespace

void ask_for_short_turns() {
  prctl(PR_SET_TIMERSLACK, kTimerSlack);
#if defined(SYS_sched_getattr) && defined(SYS_sched_setattr)
  SchedulingAttributes now = {};
  if (syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) != 0 || now.policy != SCHED_OTHER) return;
  now.size = sizeof now;
  now.flags = 0;
  now.runtime = kTurn;
  now.deadline = now.period = 0;
  syscall(SYS_sched_setattr, 0, &now, 0);  // a wish: nothing depends on its success
#endif
}

void Placement::avoid(int core) {
  if (core == avoided_ || core < 0 || core >= CPU_SETSIZE) return;
  if (avoided_ < 0 && sched_getaffinity(0, sizeof before_, &before_) != 0) return;
  cpu_set_t others = before_;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0) avoided_ = core;
}

void Placement::restore() {
  if (avoided_ < 0) return;
  sched_setaffinity(0, sizeof before_, &before_);
  avoided_ = -1;
}

}  // namespace mf

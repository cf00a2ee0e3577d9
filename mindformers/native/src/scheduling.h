// SPDX-License-Identifier: Apache-2.0
// What a worker thread asks of Linux so that it can share a core with somebody else's busy thread.
#ifndef MINDFORMERS_NATIVE_SCHEDULING_H_
#define MINDFORMERS_NATIVE_SCHEDULING_H_

#include <sched.h>

namespace mf {

// Turns of 0.1 ms for the calling thread, and sleeps that end on time. A thread whose turns are shorter than those of
// the one that runs is let in as soon as it wakes (Linux 6.12; earlier ones ignore the wish). Its share stays the same.
void ask_for_short_turns();

// Where the calling thread may run: one object per thread.
class Placement {
 public:
  // On all cores it could run on but this one; no change where that leaves none.
  void avoid(int core);
  // Where it could run before the first avoid().
  void restore();

 private:
  cpu_set_t before_;
  int avoided_ = -1;
};

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_SCHEDULING_H_

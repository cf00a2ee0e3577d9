// SPDX-License-Identifier: Apache-2.0
// Working memory of the operators, kept between calls so that its pages are faulted in once.
#ifndef MINDFORMERS_NATIVE_SCRATCH_H_
#define MINDFORMERS_NATIVE_SCRATCH_H_

#include <cstdint>

namespace mf {

// Take the smallest kept block of at least `bytes`, else a new one; 64-byte aligned, contents undefined.
void* take_scratch(int64_t bytes);
void give_back_scratch(void* block);

// n elements of T until the end of the scope.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) : data_(static_cast<T*>(take_scratch(n * static_cast<int64_t>(sizeof(T))))) {}
  ~Scratch() { give_back_scratch(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

}  // namespace mf

#endif  // MINDFORMERS_NATIVE_SCRATCH_H_

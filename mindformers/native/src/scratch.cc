// SPDX-License-Identifier: Apache-2.0
#include "scratch.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace mf {
namespace {

struct Block {
  void* data;
  int64_t bytes;
  bool taken;
};
std::mutex g_mutex;
std::vector<Block>& blocks() {
  static auto* all = new std::vector<Block>;  // never destroyed: other threads may outlive static objects
  return *all;
}
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kMostKept = 0;  // so that every block ends where its data ends
#else
constexpr size_t kMostKept = 64;  // beyond that the smallest free block goes back to the system
#endif

}  // namespace

void* take_scratch(int64_t bytes) {
  std::lock_guard<std::mutex> lock(g_mutex);
  Block* best = nullptr;
  for (Block& block : blocks()) {
    // a block far larger than needed stays for the call it was made for
    const bool fits = block.bytes >= bytes && block.bytes <= 4 * bytes + 65536;
    if (!block.taken && fits && (best == nullptr || block.bytes < best->bytes)) best = &block;
  }
  if (best != nullptr) {
    best->taken = true;
    return best->data;
  }
  void* data = nullptr;
  if (posix_memalign(&data, 64, static_cast<size_t>(bytes)) != 0) throw std::bad_alloc();
  blocks().push_back({data, bytes, true});
  return data;
}

void give_back_scratch(void* data) {
  std::lock_guard<std::mutex> lock(g_mutex);
  size_t smallest = 0, free_blocks = 0;
  for (size_t i = 0; i < blocks().size(); ++i) {
    Block& block = blocks()[i];
    if (block.data == data) block.taken = false;
    if (block.taken) continue;
    if (free_blocks++ == 0 || block.bytes < blocks()[smallest].bytes) smallest = i;
  }
  if (free_blocks <= kMostKept) return;
  std::free(blocks()[smallest].data);
  blocks().erase(blocks().begin() + static_cast<std::ptrdiff_t>(smallest));
}

}  // namespace mf

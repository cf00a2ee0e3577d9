// SPDX-License-Identifier: Apache-2.0
#include "cpu_features.h"

#include <cstdlib>
#include <cstring>

#include "custom_op.h"

namespace mf {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) return Isa::kAvx512Bf16;
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Isa choose() {
  const Isa found = best();
  const char* wish = std::getenv("MINDFORMERS_NATIVE_ISA");
  for (int i = 0; wish != nullptr && i < static_cast<int>(found); ++i) {
    if (std::strcmp(wish, kNames[i]) == 0) return static_cast<Isa>(i);
  }
  return found;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name() { return kNames[static_cast<int>(isa())]; }

}  // namespace mf

#ifndef MF_BUILD_HASH
#define MF_BUILD_HASH "none"
#endif

// Hash of the sources and flags this library was built from (native/build.py).
MF_EXPORT const char* mindformers_native_build_hash() { return MF_BUILD_HASH; }
MF_EXPORT const char* mindformers_native_isa() { return mf::isa_name(); }

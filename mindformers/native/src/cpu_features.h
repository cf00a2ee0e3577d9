// SPDX-License-Identifier: Apache-2.0
// Which of the compiled variants this CPU runs, and how a table of kernels is chosen by it.
//
// Files named *_isa.cc are compiled once per variant, into a namespace of the variant's name (-DMF_ISA=avx2). They
// hold a function that returns a table of plain function pointers; MF_DISPATCH in the family's other file declares
// the function of every variant and defines one in namespace mf that returns the right one.
#ifndef MINDFORMERS_NATIVE_CPU_FEATURES_H_
#define MINDFORMERS_NATIVE_CPU_FEATURES_H_

namespace mf {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The best variant this CPU runs; MINDFORMERS_NATIVE_ISA=portable|avx2|avx512|avx512_bf16 lowers it, for tests.
Isa isa();
const char* isa_name();

}  // namespace mf

#if defined(__x86_64__)
#define MF_DISPATCH(Table, function)    \
  namespace mf {                        \
  namespace portable {                  \
  const Table& function();              \
  }                                     \
  namespace avx2 {                      \
  const Table& function();              \
  }                                     \
  namespace avx512 {                    \
  const Table& function();              \
  }                                     \
  namespace avx512_bf16 {               \
  const Table& function();              \
  }                                     \
  const Table& function() {             \
    switch (isa()) {                    \
      case Isa::kAvx512Bf16:            \
        return avx512_bf16::function(); \
      case Isa::kAvx512:                \
        return avx512::function();      \
      case Isa::kAvx2:                  \
        return avx2::function();        \
      default:                          \
        return portable::function();    \
    }                                   \
  }                                     \
  }
#else
#define MF_DISPATCH(Table, function)                       \
  namespace mf {                                           \
  namespace portable {                                     \
  const Table& function();                                 \
  }                                                        \
  const Table& function() { return portable::function(); } \
  }
#endif

#endif  // MINDFORMERS_NATIVE_CPU_FEATURES_H_

// SPDX-License-Identifier: Apache-2.0
// The way to oneDNN's matrix products, and their division among threads.
#include "gemm.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>
#include <string>

#include "cpu_features.h"
#include "custom_op.h"
#include "thread_pool.h"

MF_DISPATCH(GemmKernels, gemm_kernels)

namespace mf {
namespace {

// oneDNN's C interface (oneapi-src.github.io/oneDNN, group dnnl_api_blas): row-major, 0 means success.
using Sgemm = int (*)(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t, float,
                      float*, int64_t);
using Bgemm = int (*)(char, char, int64_t, int64_t, int64_t, float, const uint16_t*, int64_t, const uint16_t*, int64_t,
                      float, float*, int64_t);
struct Version {
  int major, minor, patch;
  const char* hash;
  unsigned cpu_runtime, gpu_runtime;
};

struct OneDnn {
  Sgemm sgemm = nullptr;
  Bgemm bgemm = nullptr;
  std::string description;
};

std::mutex g_mutex;
OneDnn& onednn() {
  static OneDnn found;
  return found;
}
std::atomic<Sgemm> g_sgemm{nullptr};
std::atomic<Bgemm> g_bgemm{nullptr};

// oneDNN answers "unimplemented" where it has no kernel of a type for the CPU: found out by one small product.
bool works(Bgemm bgemm) {
  const uint16_t one = 0x3f80;
  float c = 0.0f;
  return bgemm('N', 'N', 1, 1, 1, 1.0f, &one, 1, &one, 1, 0.0f, &c, 1) == 0 && c == 1.0f;
}

void find(const char* path) {
  std::lock_guard<std::mutex> lock(g_mutex);
  OneDnn& found = onednn();
  if (found.sgemm != nullptr) return;
  void* handle = dlopen("libdnnl.so.3", RTLD_NOW | RTLD_NOLOAD);
  if (handle == nullptr && path != nullptr && path[0] != '\0') handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return;
  found.sgemm = reinterpret_cast<Sgemm>(dlsym(handle, "dnnl_sgemm"));
  found.bgemm = reinterpret_cast<Bgemm>(dlsym(handle, "dnnl_gemm_bf16bf16f32"));
  if (found.bgemm != nullptr && !works(found.bgemm)) found.bgemm = nullptr;
  const auto version = reinterpret_cast<const Version* (*)()>(dlsym(handle, "dnnl_version"));
  if (version != nullptr) {
    const Version& v = *version();
    found.description = std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch);
  }
  found.description += found.sgemm ? ", float32" : "";
  found.description += found.bgemm ? ", bfloat16" : ", no bfloat16 on this CPU";
  g_sgemm.store(found.sgemm);
  g_bgemm.store(found.bgemm);
}

// A part of C must keep oneDNN's blocks whole: rows in 16, columns in 64.
constexpr int64_t kRowGrain = 16, kColumnGrain = 64;
// Each part packs the whole of the other factor again, so it should be thick; more parts than threads let threads that
// the system delays be helped out.
constexpr int64_t kThick = 256;

template <class F>
void for_each_slice(int64_t n, int64_t grain, F&& body) {
  const int64_t threads = num_threads();
  const int64_t parts = std::max<int64_t>(
      1, std::min((n + grain - 1) / grain, std::clamp(n / kThick / threads * threads, threads, 4 * threads)));
  for_each_chunk(static_cast<int>(parts), [&](int part) {
    const Range range = part_of(n, static_cast<int>(parts), part, grain);
    if (range.begin < range.end) body(range.begin, range.end);
  });
}

}  // namespace

void gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
          float beta, float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  const Sgemm sgemm = g_sgemm.load(std::memory_order_relaxed);
  if (sgemm != nullptr && k > 0 && sgemm(ta, tb, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc) == 0) return;
  gemm_kernels().f32(ta == 'T', tb == 'T', m, n, k, a, lda, b, ldb, beta, c, ldc);
}

void gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b,
          int64_t ldb, float beta, float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  const Bgemm bgemm = g_bgemm.load(std::memory_order_relaxed);
  if (bgemm != nullptr && k > 0 && bgemm(ta, tb, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc) == 0) return;
  gemm_kernels().b16(ta == 'T', tb == 'T', m, n, k, a, lda, b, ldb, beta, c, ldc);
}

template <class T>
void parallel_gemm(char ta, char tb, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
                   float beta, float* c, int64_t ldc) {
  if (m >= n || n < 2 * kColumnGrain) {
    for_each_slice(m, kRowGrain, [&](int64_t begin, int64_t end) {
      const T* rows = ta == 'T' ? a + begin : a + begin * lda;
      gemm(ta, tb, end - begin, n, k, rows, lda, b, ldb, beta, c + begin * ldc, ldc);
    });
  } else {
    for_each_slice(n, kColumnGrain, [&](int64_t begin, int64_t end) {
      const T* columns = tb == 'T' ? b + begin * ldb : b + begin;
      gemm(ta, tb, m, end - begin, k, a, lda, columns, ldb, beta, c + begin, ldc);
    });
  }
}

template void parallel_gemm<float>(char, char, int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t,
                                   float, float*, int64_t);
template void parallel_gemm<uint16_t>(char, char, int64_t, int64_t, int64_t, const uint16_t*, int64_t, const uint16_t*,
                                      int64_t, float, float*, int64_t);

void parallel_to_bf16(const float* x, int64_t n, uint16_t* y) {
  for_each_range(n, 4096,
                 [&](int64_t begin, int64_t end) { gemm_kernels().to_bf16(x + begin, end - begin, y + begin); });
}

}  // namespace mf

// Look for oneDNN in the process, then at `path`.
MF_EXPORT void mindformers_native_find_onednn(const char* path) { mf::find(path); }

// Version and types of the oneDNN in use; empty without one.
MF_EXPORT const char* mindformers_native_onednn() {
  std::lock_guard<std::mutex> lock(mf::g_mutex);
  return mf::onednn().description.c_str();
}

// SPDX-License-Identifier: Apache-2.0
// Operators of the gate of SwiGLU.
#include "swiglu.h"

#include "cpu_features.h"
#include "custom_op.h"
#include "thread_pool.h"

MF_DISPATCH(SwiGluKernels, swiglu_kernels)

namespace {
constexpr int64_t kGrain = 2048;  // elements; the fewest worth handing to a thread
}

// gate (T, F), up (T, F) -> y (T, F); float32
MF_OP(SwiGlu) {
  args.require_count(3);
  const int64_t t = args[0].dim(0), f = args[0].dim(1);
  const float* gate = args[0].as<float>("gate", {t, f});
  const float* up = args[1].as<float>("up", {t, f});
  float* y = args[2].as<float>("y", {t, f});
  mf::for_each_range(t * f, kGrain, [&](int64_t begin, int64_t end) {
    mf::swiglu_kernels().forward(gate + begin, up + begin, end - begin, y + begin);
  });
}
MF_OP_SHAPE(SwiGlu) { return shapes.of(0); }

// gate (T, F), up (T, F), dy (T, F) -> dgate (T, F), dup (T, F); float32
MF_OP(SwiGluGrad) {
  args.require_count(5);
  const int64_t t = args[0].dim(0), f = args[0].dim(1);
  const float* gate = args[0].as<float>("gate", {t, f});
  const float* up = args[1].as<float>("up", {t, f});
  const float* dy = args[2].as<float>("dy", {t, f});
  float* dgate = args[3].as<float>("dgate", {t, f});
  float* dup = args[4].as<float>("dup", {t, f});
  mf::for_each_range(t * f, kGrain, [&](int64_t begin, int64_t end) {
    mf::swiglu_kernels().backward(gate + begin, up + begin, dy + begin, end - begin, dgate + begin, dup + begin);
  });
}

// SPDX-License-Identifier: Apache-2.0
// Operators of the root mean square norm.
#include "norm.h"

#include <vector>

#include "cpu_features.h"
#include "custom_op.h"
#include "thread_pool.h"

MF_DISPATCH(NormKernels, norm_kernels)

namespace {
constexpr int64_t kRows = 4;  // the fewest rows worth handing to a thread
}

// x (T, D), weight (D), eps (1) -> y (T, D); float32
MF_OP(RmsNorm) {
  args.require_count(4);
  const int64_t t = args[0].dim(0), d = args[0].dim(1);
  const float* x = args[0].as<float>("x", {t, d});
  const float* weight = args[1].as<float>("weight", {d});
  const float eps = *args[2].as<float>("eps", {1});
  float* y = args[3].as<float>("y", {t, d});
  const auto& kernels = mf::norm_kernels();
  mf::for_each_range(t, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.forward(x + i * d, weight, eps, d, y + i * d);
  });
}

MF_OP_SHAPE(RmsNorm) { return shapes.of(0); }

// x (T, D), weight (D), eps (1), dy (T, D) -> dx (T, D), dweight (D); float32
MF_OP(RmsNormGrad) {
  args.require_count(6);
  const int64_t t = args[0].dim(0), d = args[0].dim(1);
  const float* x = args[0].as<float>("x", {t, d});
  const float* weight = args[1].as<float>("weight", {d});
  const float eps = *args[2].as<float>("eps", {1});
  const float* dy = args[3].as<float>("dy", {t, d});
  float* dx = args[4].as<float>("dx", {t, d});
  float* dweight = args[5].as<float>("dweight", {d});
  const auto& kernels = mf::norm_kernels();
  std::vector<float> partial(static_cast<size_t>(mf::num_threads()) * d, 0.0f);
  const int parts = mf::for_each_part(t, kRows, [&](int64_t begin, int64_t end, int part) {
    float* own = partial.data() + part * d;
    for (int64_t i = begin; i < end; ++i) kernels.backward(x + i * d, weight, dy + i * d, eps, d, dx + i * d, own);
  });
  for (int64_t i = 0; i < d; ++i) {
    float total = 0.0f;
    for (int part = 0; part < parts; ++part) total += partial[part * d + i];
    dweight[i] = total;
  }
}

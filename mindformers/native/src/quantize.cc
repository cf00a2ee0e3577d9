// SPDX-License-Identifier: Apache-2.0
// Weights -> int8 with a scale per row, and products of many rows with such weights.
#include <algorithm>
#include <atomic>
#include <string>

#include "custom_op.h"
#include "decode.h"
#include "thread_pool.h"

namespace {

constexpr int64_t kRows = 64;  // taken at a time, so that they stay in the second-level cache

mf::WeightFormat format_of(const mf::Arg& arg) {
  switch (arg.dtype()) {
    case mf::DType::kFloat32:
      return mf::WeightFormat::kFloat32;
    case mf::DType::kBFloat16:
      return mf::WeightFormat::kBFloat16;
    default:
      throw mf::OpError("float32 or bfloat16 expected, got " + arg.describe());
  }
}

}  // namespace

// weight (N, K) float32 or bfloat16 -> int8 (N, K), scale (N): weight[n][k] is about scale[n] times the integer.
MF_OP(QuantizeRows) {
  args.require_count(3);
  const int64_t n = args[0].dim(0), k = args[0].dim(1);
  const mf::WeightFormat format = format_of(args[0]);
  const char* weight = static_cast<const char*>(args[0].raw("weight", {n, k}));
  int8_t* q = args[1].as<int8_t>("quantized", {n, k});
  float* scale = args[2].as<float>("scale", {n});
  std::atomic<int64_t> sick{-1};
  mf::for_each_range(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      scale[i] = mf::decode_kernels().quantize_row(weight + i * k * mf::bytes_of(format), format, k, q + i * k);
      if (!(scale[i] - scale[i] == 0.0f)) sick = i;
    }
  });
  mf::require(sick < 0, "row " + std::to_string(sick) + " of the weight holds an infinity or not-a-number");
}

MF_OP_SHAPE(PackedLinear) { return {shapes.dim(0, 0), shapes.dim(1, 0)}; }

// x (T, K), weight (N, K) bfloat16 -> y (T, N)
// x (T, K), weight (N, K) int8, scale (N) -> y (T, N)
MF_OP(PackedLinear) {
  const bool scaled = args[1].dtype() == mf::DType::kInt8;
  args.require_count(scaled ? 4 : 3);
  const int64_t t = args[0].dim(0), k = args[0].dim(1);
  const float* x = args[0].as<float>("x", {t, k});
  mf::Weight weight;
  weight.format = scaled ? mf::WeightFormat::kInt8 : format_of(args[1]);
  weight.data = args[1].raw("weight", {mf::kAny, k});
  weight.rows = args[1].dim(0);
  weight.cols = k;
  if (scaled) weight.scale = args[2].as<float>("scale", {weight.rows});
  float* y = args[scaled ? 3 : 2].as<float>("y", {t, weight.rows});
  mf::for_each_range(weight.rows, mf::kWeightRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n += 4 * mf::kWeightRows) {  // these are read from the cache for later rows
      const int64_t to = std::min(n + 4 * mf::kWeightRows, end);
      for (int64_t i = 0; i < t; i += kRows) {
        mf::product_kernels().product(weight, x + i * k, std::min(kRows, t - i), n, to, y + i * weight.rows,
                                      weight.rows, false);
      }
    }
  });
}

// SPDX-License-Identifier: Apache-2.0
// The low-rank branch of a linear layer with an adapter (Hu et al. 2021, LoRA), its dropout included:
// y = s (x * m) a^T b^T with x (T, K), a (R, K), b (N, R); row t of the mask m is row rows[t] of a pool (P, K) of zeros
// and ones. Nothing is kept for the backward pass: the branch is cheap, and masked inputs are as large as activations.
#include <algorithm>
#include <string>

#include "custom_op.h"
#include "gemm.h"
#include "scratch.h"
#include "thread_pool.h"

namespace {

using mf::parallel_gemm;

constexpr int64_t kRows = 16;  // the fewest rows worth handing to a thread

// The inputs both operators have, and what both compute from them.
class Branch {
 public:
  explicit Branch(const mf::Args& args)
      : t(args[0].dim(0)),
        k(args[0].dim(1)),
        r(args[1].dim(0)),
        n(args[2].dim(0)),
        a(args[1].as<float>("a", {r, k})),
        b(args[2].as<float>("b", {n, r})),
        scaling(*args[5].as<float>("scaling", {1})),
        pool_(args[3].as<float>("pool", {mf::kAny, k})),
        rows_(args[4].as<int32_t>("rows", {t})),
        masked_(t * k),
        low_(t * r) {
    const float* x = args[0].as<float>("x", {t, k});
    const int64_t pool_rows = args[3].dim(0);
    for (int64_t i = 0; i < t; ++i) {
      mf::require(rows_[i] >= 0 && rows_[i] < pool_rows, "row " + std::to_string(rows_[i]) + " of token " +
                                                             std::to_string(i) + " is not in [0, " +
                                                             std::to_string(pool_rows) + ")");
    }
    std::copy_n(x, t * k, masked_.data());
    mask(masked_.data());
    parallel_gemm('N', 'T', t, r, k, masked(), k, a, k, 0.0f, low_.data(), r);
    scale(low_.data());
  }

  // Puts the zeros of the mask into values (T, K).
  void mask(float* values) const {
    mf::for_each_range(t, kRows, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* ones = pool_ + rows_[i] * k;
        for (int64_t j = 0; j < k; ++j) values[i * k + j] *= ones[j];
      }
    });
  }

  void scale(float* low) const {
    for (int64_t i = 0; i < t * r; ++i) low[i] *= scaling;
  }

  const float* masked() const { return masked_.data(); }
  const float* low() const { return low_.data(); }  // s (x * m) a^T

  const int64_t t, k, r, n;
  const float *const a, *const b;
  const float scaling;

 private:
  const float* pool_;
  const int32_t* rows_;
  mf::Scratch<float> masked_, low_;
};

}  // namespace

// x (T, K), a (R, K), b (N, R), pool (P, K), rows (T) int32, scaling (1) -> y (T, N); float32
MF_OP(LowRank) {
  args.require_count(7);
  const Branch branch(args);
  float* y = args[6].as<float>("y", {branch.t, branch.n});
  parallel_gemm('N', 'T', branch.t, branch.n, branch.r, branch.low(), branch.r, branch.b, branch.r, 0.0f, y, branch.n);
}

// The same inputs and dy (T, N) -> dx (T, K), da (R, K), db (N, R)
MF_OP(LowRankGrad) {
  args.require_count(10);
  const Branch branch(args);
  const int64_t t = branch.t, k = branch.k, r = branch.r, n = branch.n;
  const float* dy = args[6].as<float>("dy", {t, n});
  float* dx = args[7].as<float>("dx", {t, k});
  float* da = args[8].as<float>("da", {r, k});
  float* db = args[9].as<float>("db", {n, r});
  parallel_gemm('T', 'N', n, r, t, dy, n, branch.low(), r, 0.0f, db, r);
  const mf::Scratch<float> dlow(t * r);
  parallel_gemm('N', 'N', t, r, n, dy, n, branch.b, r, 0.0f, dlow.data(), r);
  branch.scale(dlow.data());
  parallel_gemm('T', 'N', r, k, t, static_cast<const float*>(dlow.data()), r, branch.masked(), k, 0.0f, da, k);
  parallel_gemm('N', 'N', t, k, r, static_cast<const float*>(dlow.data()), r, branch.a, k, 0.0f, dx, k);
  branch.mask(dx);
}

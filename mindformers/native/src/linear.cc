// SPDX-License-Identifier: Apache-2.0
// Linear layers: y = x w^T with x (T, K), w (N, K). The products run in float32, or with both factors rounded to
// bfloat16 and float32 sums; inputs and outputs are float32 in either case.
#include "custom_op.h"
#include "gemm.h"
#include "scratch.h"

namespace {

using mf::parallel_gemm;

// A float32 matrix as a factor of products of type T: the matrix itself, or a copy rounded to bfloat16.
template <class T>
class Factor;

template <>
class Factor<float> {
 public:
  Factor(const float* x, int64_t) : data_(x) {}
  const float* data() const { return data_; }

 private:
  const float* data_;
};

template <>
class Factor<mf::bf16> {
 public:
  Factor(const float* x, int64_t n) : copy_(n) { mf::parallel_to_bf16(x, n, copy_.data()); }
  const mf::bf16* data() const { return copy_.data(); }

 private:
  mf::Scratch<mf::bf16> copy_;
};

template <class T>
void forward(const mf::Args& args) {
  args.require_count(3);
  const int64_t t = args[0].dim(0), k = args[0].dim(1), n = args[1].dim(0);
  const Factor<T> x(args[0].as<float>("x", {t, k}), t * k);
  const Factor<T> w(args[1].as<float>("weight", {n, k}), n * k);
  float* y = args[2].as<float>("y", {t, n});
  parallel_gemm('N', 'T', t, n, k, x.data(), k, w.data(), k, 0.0f, y, n);
}

// dx = dy w
template <class T>
void input_gradient(const mf::Args& args) {
  args.require_count(3);
  const int64_t t = args[0].dim(0), n = args[0].dim(1), k = args[1].dim(1);
  const Factor<T> dy(args[0].as<float>("dy", {t, n}), t * n);
  const Factor<T> w(args[1].as<float>("weight", {n, k}), n * k);
  float* dx = args[2].as<float>("dx", {t, k});
  parallel_gemm('N', 'N', t, k, n, dy.data(), n, w.data(), k, 0.0f, dx, k);
}

// dx = dy w, dw = dy^T x
template <class T>
void gradients(const mf::Args& args) {
  args.require_count(5);
  const int64_t t = args[0].dim(0), k = args[0].dim(1), n = args[1].dim(0);
  const float* x32 = args[0].as<float>("x", {t, k});
  const float* w32 = args[1].as<float>("weight", {n, k});
  const Factor<T> dy(args[2].as<float>("dy", {t, n}), t * n);
  float* dx = args[3].as<float>("dx", {t, k});
  float* dw = args[4].as<float>("dweight", {n, k});
  {
    const Factor<T> w(w32, n * k);
    parallel_gemm('N', 'N', t, k, n, dy.data(), n, w.data(), k, 0.0f, dx, k);
  }
  const Factor<T> x(x32, t * k);
  parallel_gemm('T', 'N', n, k, t, dy.data(), n, x.data(), k, 0.0f, dw, k);
}

}  // namespace

// x (T, K), weight (N, K) -> y (T, N)
MF_OP(LinearF32) { forward<float>(args); }
MF_OP_SHAPE(LinearF32) { return {shapes.dim(0, 0), shapes.dim(1, 0)}; }
MF_OP(LinearBf16) { forward<mf::bf16>(args); }
MF_OP_SHAPE(LinearBf16) { return {shapes.dim(0, 0), shapes.dim(1, 0)}; }

// dy (T, N), weight (N, K) -> dx (T, K): for a frozen weight
MF_OP(LinearInputGradF32) { input_gradient<float>(args); }
MF_OP(LinearInputGradBf16) { input_gradient<mf::bf16>(args); }

// x (T, K), weight (N, K), dy (T, N) -> dx (T, K), dweight (N, K)
MF_OP(LinearGradF32) { gradients<float>(args); }
MF_OP(LinearGradBf16) { gradients<mf::bf16>(args); }

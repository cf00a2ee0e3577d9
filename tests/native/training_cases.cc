// SPDX-License-Identifier: Apache-2.0
// The training operators beside plain loops in double precision.
#include <algorithm>

#include "campaign.h"

MF_DECLARE_OP(RmsNorm);
MF_DECLARE_OP(RmsNormGrad);
MF_DECLARE_OP(LinearF32);
MF_DECLARE_OP(LinearBf16);
MF_DECLARE_OP(LinearGradF32);
MF_DECLARE_OP(LinearGradBf16);
MF_DECLARE_OP(LinearInputGradF32);
MF_DECLARE_OP(LinearInputGradBf16);
MF_DECLARE_OP(LowRank);
MF_DECLARE_OP(LowRankGrad);
MF_DECLARE_OP(SwiGlu);
MF_DECLARE_OP(SwiGluGrad);
MF_DECLARE_OP(AttentionF32);
MF_DECLARE_OP(AttentionBf16);
MF_DECLARE_OP(AttentionGradF32);
MF_DECLARE_OP(AttentionGradBf16);
MF_DECLARE_OP(HeadLossF32);
MF_DECLARE_OP(HeadLossBf16);
MF_DECLARE_OP(HeadLossInputGradF32);
MF_DECLARE_OP(HeadLossInputGradBf16);
MF_DECLARE_OP(HeadLossGradF32);
MF_DECLARE_OP(HeadLossGradBf16);
MF_DECLARE_OP(ScaleBy);

namespace {

using campaign::expect;
using campaign::expect_close;
using campaign::make;
using campaign::normal;
using campaign::Random;
using campaign::run;
using campaign::Tensor;
using Values = std::vector<double>;

constexpr double kF32 = 2e-5, kBf16 = 3e-2;

// C (m, n) = op(A) op(B), row-major; A is (k, m) when ta, B is (n, k) when tb.
Values product(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const Tensor& a, const Tensor& b) {
  Values c(static_cast<size_t>(m * n), 0.0);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t p = 0; p < k; ++p) {
        c[i * n + j] += static_cast<double>(a.at(ta ? p * m + i : i * k + p)) * b.at(tb ? j * k + p : p * n + j);
      }
    }
  }
  return c;
}

}  // namespace

MF_CASE(Norm) {
  const int64_t t = random.size(40), d = random.size(90);
  const Tensor x = normal(random, {t, d}), w = normal(random, {d}), dy = normal(random, {t, d});
  const Tensor eps = campaign::scalar(1e-5f), y = make<float>({t, d}), dx = make<float>({t, d}), dw = make<float>({d});
  run(random, "RmsNorm", RmsNorm, {x, w, eps, y});
  run(random, "RmsNormGrad", RmsNormGrad, {x, w, eps, dy, dx, dw});
  Values ey(x.size()), edx(x.size()), edw(d, 0.0);
  for (int64_t i = 0; i < t; ++i) {
    double square = 0.0, inner = 0.0;
    for (int64_t j = 0; j < d; ++j) square += static_cast<double>(x.at(i * d + j)) * x.at(i * d + j);
    const double r = 1.0 / std::sqrt(square / d + 1e-5);
    for (int64_t j = 0; j < d; ++j) inner += static_cast<double>(dy.at(i * d + j)) * w.at(j) * x.at(i * d + j);
    for (int64_t j = 0; j < d; ++j) {
      const int64_t at = i * d + j;
      ey[at] = x.at(at) * r * w.at(j);
      edx[at] = dy.at(at) * w.at(j) * r - x.at(at) * r * r * r * inner / d;
      edw[j] += dy.at(at) * x.at(at) * r;
    }
  }
  expect_close("RmsNorm y", y, ey, kF32);
  if (d > 3) expect_close("RmsNormGrad dx", dx, edx, 1e-4);  // below, dx is a difference of nearly equal numbers
  expect_close("RmsNormGrad dw", dw, edw, kF32);
}

MF_CASE(Linear) {
  const int64_t t = random.size(80), k = random.size(70), n = random.size(150);
  const Tensor x = normal(random, {t, k}), w = normal(random, {n, k}), dy = normal(random, {t, n});
  const Values ey = product(false, true, t, n, k, x, w), edx = product(false, false, t, k, n, dy, w);
  const Values edw = product(true, false, n, k, t, dy, x);
  const struct {
    campaign::Op forward, backward, input;
    double tolerance;
  } kinds[] = {{LinearF32, LinearGradF32, LinearInputGradF32, kF32},
               {LinearBf16, LinearGradBf16, LinearInputGradBf16, kBf16}};
  for (const auto& kind : kinds) {
    const Tensor y = make<float>({t, n}), dx = make<float>({t, k}), dw = make<float>({n, k}),
                 alone = make<float>({t, k});
    run(random, "Linear", kind.forward, {x, w, y});
    run(random, "LinearGrad", kind.backward, {x, w, dy, dx, dw});
    run(random, "LinearInputGrad", kind.input, {dy, w, alone});
    expect_close("Linear y", y, ey, kind.tolerance, std::sqrt(static_cast<double>(t * n * k)));
    expect_close("LinearGrad dx", dx, edx, kind.tolerance, std::sqrt(static_cast<double>(t * n * k)));
    expect_close("LinearGrad dw", dw, edw, kind.tolerance, std::sqrt(static_cast<double>(t * n * k)));
    expect_close("LinearInputGrad dx", alone, edx, kind.tolerance, std::sqrt(static_cast<double>(t * n * k)));
  }
}

MF_CASE(LowRank) {
  const int64_t t = random.size(50), k = random.size(70), r = random.size(20), n = random.size(60);
  const int64_t p = random.size(30);
  const Tensor x = normal(random, {t, k}), a = normal(random, {r, k}), b = normal(random, {n, r});
  const Tensor pool = make<float>({p, k}), rows = make<int32_t>({t}), dy = normal(random, {t, n});
  const Tensor y = make<float>({t, n}), dx = make<float>({t, k}), da = make<float>({r, k}), db = make<float>({n, r});
  for (int64_t i = 0; i < pool.size(); ++i) pool.as<float>()[i] = random.chance(0.8) ? 1.0f : 0.0f;
  for (int64_t i = 0; i < t; ++i) rows.as<int32_t>()[i] = static_cast<int32_t>(random.whole(0, p - 1));
  run(random, "LowRank", LowRank, {x, a, b, pool, rows, campaign::scalar(1.7f), y});
  run(random, "LowRankGrad", LowRankGrad, {x, a, b, pool, rows, campaign::scalar(1.7f), dy, dx, da, db});
  const auto mask = [&](const Tensor& values) {
    Tensor masked = make<float>({t, k});
    for (int64_t i = 0; i < t * k; ++i) {
      masked.as<float>()[i] = 1.7f * values.at(i) * pool.at(rows.as<int32_t>()[i / k] * k + i % k);
    }
    return masked;
  };
  const auto rounded = [](const Values& values, std::vector<int64_t> shape) {
    Tensor tensor = make<float>(std::move(shape));
    for (size_t i = 0; i < values.size(); ++i) tensor.as<float>()[i] = static_cast<float>(values[i]);
    return tensor;
  };
  const Tensor masked = mask(x);  // 1.7 x * mask
  const Tensor low = rounded(product(false, true, t, r, k, masked, a), {t, r});
  const Tensor dlow = rounded(product(false, false, t, r, n, dy, b), {t, r});
  const double usual = std::sqrt(static_cast<double>(t * n * r * k));
  expect_close("LowRank y", y, product(false, true, t, n, r, low, b), kF32, usual);
  expect_close("LowRankGrad db", db, product(true, false, n, r, t, dy, low), kF32, usual);
  expect_close("LowRankGrad da", da, product(true, false, r, k, t, dlow, masked), kF32, usual);
  const Tensor whole = mask(rounded(product(false, false, t, k, r, dlow, a), {t, k}));
  expect_close("LowRankGrad dx", dx, Values(whole.as<float>(), whole.as<float>() + t * k), kF32, usual);

  // A row the pool does not have is refused.
  rows.as<int32_t>()[random.whole(0, t - 1)] = random.chance(0.5) ? -1 : static_cast<int32_t>(p);
  expect("LowRank refuses a row", campaign::call(LowRank, {x, a, b, pool, rows, campaign::scalar(1.7f), y}) != 0);
}

MF_CASE(SwiGlu) {
  const int64_t t = random.size(30), f = random.size(120);
  const Tensor g = normal(random, {t, f}), u = normal(random, {t, f}), dy = normal(random, {t, f});
  if (random.chance(0.2)) g.as<float>()[0] = random.chance(0.5) ? 200.0f : -200.0f;
  const Tensor y = make<float>({t, f}), dg = make<float>({t, f}), du = make<float>({t, f});
  run(random, "SwiGlu", SwiGlu, {g, u, y});
  run(random, "SwiGluGrad", SwiGluGrad, {g, u, dy, dg, du});
  Values ey, edg, edu;
  for (int64_t i = 0; i < g.size(); ++i) {
    const double s = 1.0 / (1.0 + std::exp(-static_cast<double>(g.at(i))));
    ey.push_back(g.at(i) * s * u.at(i));
    edg.push_back(dy.at(i) * u.at(i) * s * (1.0 + g.at(i) * (1.0 - s)));
    edu.push_back(dy.at(i) * g.at(i) * s);
  }
  expect_close("SwiGlu y", y, ey, kF32);
  expect_close("SwiGluGrad dgate", dg, edg, kF32);
  expect_close("SwiGluGrad dup", du, edu, kF32);
}

namespace {

struct AttentionInputs {
  int64_t b, s, n, k, d;
  Tensor q, key, v, table, visible, dout;
};

AttentionInputs attention_inputs(Random& random) {
  AttentionInputs in{random.whole(1, 2),
                     random.chance(0.2) ? random.whole(60, 140) : random.size(30),
                     0,
                     random.whole(1, 2),
                     2 * random.size(20),
                     {},
                     {},
                     {},
                     {},
                     {},
                     {}};
  in.n = in.k * random.whole(1, 3);
  const int64_t t = in.b * in.s;
  in.q = normal(random, {t, in.n * in.d}), in.key = normal(random, {t, in.k * in.d});
  in.v = normal(random, {t, in.k * in.d}), in.dout = normal(random, {t, in.n * in.d});
  in.table = make<float>({random.chance(0.5) ? 1 : in.b, in.s, in.d});
  for (int64_t i = 0; i < in.table.size(); ++i) {
    const int64_t pair = i % in.d % (in.d / 2), position = i / in.d;
    const double angle = 0.3 * static_cast<double>(position % 17) + 0.1 * static_cast<double>(pair);
    in.table.as<float>()[i] = static_cast<float>(i % in.d < in.d / 2 ? std::cos(angle) : std::sin(angle));
  }
  in.visible = make<bool>({random.chance(0.5) ? 1 : in.b, in.s, in.s});
  const bool causal = random.chance(0.7);
  const double hole = random.chance(0.5) ? 0.0 : 0.3;
  for (int64_t i = 0; i < in.visible.size(); ++i) {
    in.visible.as<bool>()[i] = !(causal && i % in.s > i / in.s % in.s) && !random.chance(hole);
  }
  return in;
}

struct AttentionReference {
  Values out, dq, dk, dv;
};

// Rotated copy of head `head` of row `row`.
Values rotated(const AttentionInputs& in, const Tensor& x, int64_t heads, int64_t row, int64_t head) {
  const int64_t b = in.table.shape[0] == 1 ? 0 : row / in.s, half = in.d / 2;
  const float* table = in.table.as<float>() + (b * in.s + row % in.s) * in.d;
  Values y(in.d);
  for (int64_t i = 0; i < half; ++i) {
    const double first = x.at((row * heads + head) * in.d + i), second = x.at((row * heads + head) * in.d + half + i);
    y[i] = first * table[i] - second * table[half + i];
    y[half + i] = second * table[i] + first * table[half + i];
  }
  return y;
}

void rotate_back(const AttentionInputs& in, Values& x, int64_t heads) {
  const int64_t half = in.d / 2;
  for (int64_t row = 0; row < in.b * in.s; ++row) {
    const int64_t b = in.table.shape[0] == 1 ? 0 : row / in.s;
    const float* table = in.table.as<float>() + (b * in.s + row % in.s) * in.d;
    for (int64_t head = 0; head < heads; ++head) {
      double* y = x.data() + (row * heads + head) * in.d;
      for (int64_t i = 0; i < half; ++i) {
        const double first = y[i], second = y[half + i];
        y[i] = first * table[i] + second * table[half + i];
        y[half + i] = second * table[i] - first * table[half + i];
      }
    }
  }
}

AttentionReference attention_reference(const AttentionInputs& in) {
  AttentionReference ref{Values(in.q.size()), Values(in.q.size()), Values(in.key.size()), Values(in.key.size())};
  const double scale = 1.0 / std::sqrt(static_cast<double>(in.d));
  for (int64_t row = 0; row < in.b * in.s; ++row) {
    const int64_t first = row / in.s * in.s, mask_at = ((in.visible.shape[0] == 1 ? 0 : first) + row % in.s) * in.s;
    for (int64_t head = 0; head < in.n; ++head) {
      const int64_t kv = head / (in.n / in.k), at = (row * in.n + head) * in.d;
      const Values q = rotated(in, in.q, in.n, row, head);
      Values p(in.s), dp(in.s, 0.0);
      double most = -1e300, total = 0.0, inner = 0.0;
      for (int64_t j = 0; j < in.s; ++j) {
        const Values k = rotated(in, in.key, in.k, first + j, kv);
        for (int64_t i = 0; i < in.d; ++i) p[j] += q[i] * k[i] * scale;
        if (!in.visible.as<bool>()[mask_at + j]) p[j] = -1e30;
        most = std::max(most, p[j]);
      }
      for (double& x : p) total += x = std::exp(x - most);
      for (int64_t j = 0; j < in.s; ++j) {
        p[j] /= total;
        const int64_t v = ((first + j) * in.k + kv) * in.d;
        for (int64_t i = 0; i < in.d; ++i) {
          ref.out[at + i] += p[j] * in.v.at(v + i);
          ref.dv[v + i] += p[j] * in.dout.at(at + i);
          dp[j] += static_cast<double>(in.dout.at(at + i)) * in.v.at(v + i);
        }
        inner += p[j] * dp[j];
      }
      for (int64_t j = 0; j < in.s; ++j) {
        const Values k = rotated(in, in.key, in.k, first + j, kv);
        const double ds = p[j] * (dp[j] - inner) * scale;
        for (int64_t i = 0; i < in.d; ++i) {
          ref.dq[at + i] += ds * k[i];
          ref.dk[((first + j) * in.k + kv) * in.d + i] += ds * q[i];
        }
      }
    }
  }
  rotate_back(in, ref.dq, in.n);
  rotate_back(in, ref.dk, in.k);
  return ref;
}

}  // namespace

MF_CASE(Attention) {
  const AttentionInputs in = attention_inputs(random);
  const AttentionReference ref = attention_reference(in);
  const double usual = 0.3 * std::sqrt(static_cast<double>(in.q.size()));
  const struct {
    campaign::Op forward, backward;
    double tolerance;
  } kinds[] = {{AttentionF32, AttentionGradF32, 1e-4}, {AttentionBf16, AttentionGradBf16, 0.08}};
  for (const auto& kind : kinds) {
    const Tensor out = make<float>(in.q.shape), dq = make<float>(in.q.shape);
    const Tensor dk = make<float>(in.key.shape), dv = make<float>(in.v.shape);
    run(random, "Attention", kind.forward, {in.q, in.key, in.v, in.table, in.visible, out});
    run(random, "AttentionGrad", kind.backward, {in.q, in.key, in.v, in.table, in.visible, in.dout, dq, dk, dv});
    expect_close("Attention out", out, ref.out, kind.tolerance, usual);
    expect_close("AttentionGrad dv", dv, ref.dv, kind.tolerance, usual);
    if (in.s < 4) continue;  // below, softmax hardly passes a gradient to the scores
    expect_close("AttentionGrad dq", dq, ref.dq, kind.tolerance, usual);
    expect_close("AttentionGrad dk", dk, ref.dk, kind.tolerance, usual);
  }
}

MF_CASE(HeadLoss) {
  const int64_t t = random.size(70), h = random.size(40), v = random.size(130);
  const Tensor x = normal(random, {t, h}), w = normal(random, {v, h}), labels = make<int32_t>({t}),
               mask = make<float>({t});
  for (int64_t i = 0; i < t; ++i) {
    mask.as<float>()[i] = random.chance(0.3) ? 0.0f : 1.0f;
    labels.as<int32_t>()[i] = mask.at(i) == 0.0f ? -100 : static_cast<int32_t>(random.whole(0, v - 1));
  }
  const Values z = product(false, true, t, v, h, x, w);
  Values dx(t * h, 0.0), dw(v * h, 0.0), total(1, 0.0);
  for (int64_t i = 0; i < t; ++i) {
    if (mask.at(i) == 0.0f) continue;
    const int32_t label = labels.as<int32_t>()[i];
    const double most = *std::max_element(z.begin() + i * v, z.begin() + (i + 1) * v);
    double all = 0.0;
    for (int64_t j = 0; j < v; ++j) all += std::exp(z[i * v + j] - most);
    total[0] += std::log(all) + most - z[i * v + label];
    for (int64_t j = 0; j < v; ++j) {
      const double dz = std::exp(z[i * v + j] - most) / all - (j == label ? 1.0 : 0.0);
      for (int64_t p = 0; p < h; ++p) {
        dx[i * h + p] += dz * w.at(j * h + p);
        dw[j * h + p] += dz * x.at(i * h + p);
      }
    }
  }
  const struct {
    campaign::Op loss, input, both;
    double tolerance;
  } kinds[] = {{HeadLossF32, HeadLossInputGradF32, HeadLossGradF32, 1e-4},
               {HeadLossBf16, HeadLossInputGradBf16, HeadLossGradBf16, 0.05}};
  for (const auto& kind : kinds) {
    const Tensor sum = make<float>({1}), dh = make<float>({t, h}), dweight = make<float>({v, h});
    run(random, "HeadLoss", kind.loss, {x, w, labels, mask, sum});
    expect_close("HeadLoss total", sum, total, kind.tolerance, std::sqrt(static_cast<double>(t)));
    run(random, "HeadLossInputGrad", kind.input, {x, w, labels, mask, sum, dh});
    run(random, "HeadLossGrad", kind.both, {x, w, labels, mask, sum, dh, dweight});
    if (v < 4) continue;  // a loss of next to nothing
    expect_close("HeadLoss dhidden", dh, dx, kind.tolerance, std::sqrt(static_cast<double>(t * h)));
    expect_close("HeadLoss dweight", dweight, dw, kind.tolerance, std::sqrt(static_cast<double>(t * h)));
    if (mask.at(0) != 0.0f) {
      labels.as<int32_t>()[0] += static_cast<int32_t>(v);
      expect("HeadLoss refuses a label", campaign::call(kind.loss, {x, w, labels, mask, sum}) != 0);
      labels.as<int32_t>()[0] -= static_cast<int32_t>(v);
    }
  }
}

MF_CASE(ScaleBy) {
  const Tensor x = normal(random, {random.size(9), random.size(50)}), y = make<float>(x.shape);
  run(random, "ScaleBy", ScaleBy, {x, campaign::scalar(-0.75f), y});
  Values expected;
  for (int64_t i = 0; i < x.size(); ++i) expected.push_back(-0.75 * x.at(i));
  expect_close("ScaleBy", y, expected, 1e-7);
}

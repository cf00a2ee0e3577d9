// SPDX-License-Identifier: Apache-2.0
// Operators of head and loss.
#include "cross_entropy.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu_features.h"
#include "custom_op.h"
#include "gemm.h"
#include "scratch.h"
#include "thread_pool.h"

MF_DISPATCH(CrossEntropyKernels, cross_entropy_kernels)

namespace {

constexpr int64_t kLogitBytes = 64 << 20;  // of a block of rows

// Inputs 0 to 3: h (T, H), weight (V, H), labels (T), mask (T).
struct Problem {
  int64_t h, v, t;
  const float *hidden, *weight, *mask;
  const int32_t* labels;
  std::vector<int64_t> rows;  // whose mask is not 0

  // Rows of a block: all in equal parts that keep the logits below kLogitBytes.
  int64_t block() const {
    const int64_t count = static_cast<int64_t>(rows.size());
    const int64_t most = std::max<int64_t>(64, kLogitBytes / (4 * v));
    const int64_t blocks = std::max<int64_t>(1, (count + most - 1) / most);
    return (count + blocks - 1) / blocks;
  }
};

Problem problem_of(const mf::Args& args) {
  Problem p{};
  p.t = args[0].dim(0), p.h = args[0].dim(1), p.v = args[1].dim(0);
  p.hidden = args[0].as<float>("hidden", {p.t, p.h});
  p.weight = args[1].as<float>("weight", {p.v, p.h});
  p.labels = args[2].as<int32_t>("labels", {p.t});
  p.mask = args[3].as<float>("mask", {p.t});
  for (int64_t i = 0; i < p.t; ++i) {
    if (p.mask[i] == 0.0f) continue;
    mf::require(p.labels[i] >= 0 && p.labels[i] < p.v, "label " + std::to_string(p.labels[i]) + " of row " +
                                                           std::to_string(i) + " is not in [0, " + std::to_string(p.v) +
                                                           ") and not masked");
    p.rows.push_back(i);
  }
  return p;
}

enum class Wanted { kLoss, kInputGradient, kGradients };

// Works through the rows in blocks with products of type T.
template <class T>
class Blocks {
 public:
  Blocks(const Problem& p, Wanted wanted, float* dh, float* dw)
      : p_(p),
        wanted_(wanted),
        dh_(dh),
        dw_(dw),
        hidden_(p.block() * p.h),
        logits_(p.block() * p.v),
        rounded_(kRounds && wanted != Wanted::kLoss ? p.block() * p.v : 0),
        weight_copy_(kRounds ? p.v * p.h : 0),
        block_dh_(wanted == Wanted::kLoss ? 0 : p.block() * p.h) {
    if constexpr (kRounds) mf::parallel_to_bf16(p.weight, p.v * p.h, weight_copy_.data());
  }

  float run() {
    if (wanted_ != Wanted::kLoss) std::fill_n(dh_, p_.t * p_.h, 0.0f);
    if (wanted_ == Wanted::kGradients && p_.rows.empty()) std::fill_n(dw_, p_.v * p_.h, 0.0f);
    double total = 0.0;
    const int64_t count = static_cast<int64_t>(p_.rows.size());
    for (int64_t begin = 0; begin < count; begin += p_.block()) {
      total += block(begin, std::min(count, begin + p_.block()));
    }
    return static_cast<float>(total);
  }

 private:
  static constexpr bool kRounds = !std::is_same_v<T, float>;

  double block(int64_t begin, int64_t end) {
    const int64_t m = end - begin, h = p_.h, v = p_.v;
    mf::for_each_range(m, 8, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const float* row = p_.hidden + p_.rows[begin + i] * h;
        if constexpr (kRounds) {
          mf::gemm_kernels().to_bf16(row, h, hidden_.data() + i * h);
        } else {
          std::copy_n(row, h, hidden_.data() + i * h);
        }
      }
    });
    mf::parallel_gemm('N', 'T', m, v, h, hidden_.data(), h, weight(), h, 0.0f, logits_.data(), v);
    std::vector<float> losses(static_cast<size_t>(m));
    mf::for_each_range(m, 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) losses[i] = row(i, p_.rows[begin + i]);
    });
    if (wanted_ != Wanted::kLoss) gradients(begin, m);
    double total = 0.0;
    for (int64_t i = 0; i < m; ++i) total += static_cast<double>(losses[i]) * p_.mask[p_.rows[begin + i]];
    return total;
  }

  float row(int64_t i, int64_t source) {
    const auto& kernels = mf::cross_entropy_kernels();
    float* z = logits_.data() + i * p_.v;
    const int64_t label = p_.labels[source];
    if (wanted_ == Wanted::kLoss) return kernels.loss(z, p_.v, label);
    uint16_t* rounded = nullptr;
    if constexpr (kRounds) rounded = rounded_.data() + i * p_.v;
    return kernels.row(z, p_.v, label, p_.mask[source], rounded);
  }

  void gradients(int64_t begin, int64_t m) {
    const int64_t h = p_.h, v = p_.v;
    mf::parallel_gemm('N', 'N', m, h, v, dlogits(), v, weight(), h, 0.0f, block_dh_.data(), h);
    mf::for_each_range(m, 8, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) std::copy_n(block_dh_.data() + i * h, h, dh_ + p_.rows[begin + i] * h);
    });
    if (wanted_ != Wanted::kGradients) return;
    mf::parallel_gemm('T', 'N', v, h, m, dlogits(), v, hidden_.data(), h, begin == 0 ? 0.0f : 1.0f, dw_, h);
  }

  const T* weight() const {
    if constexpr (kRounds) {
      return weight_copy_.data();
    } else {
      return p_.weight;
    }
  }
  const T* dlogits() const {
    if constexpr (kRounds) {
      return rounded_.data();
    } else {
      return logits_.data();
    }
  }

  const Problem& p_;
  Wanted wanted_;
  float *dh_, *dw_;
  mf::Scratch<T> hidden_;
  mf::Scratch<float> logits_;
  mf::Scratch<T> rounded_, weight_copy_;
  mf::Scratch<float> block_dh_;
};

template <class T>
void head_loss(const mf::Args& args, Wanted wanted) {
  args.require_count(wanted == Wanted::kLoss ? 5 : wanted == Wanted::kInputGradient ? 6 : 7);
  const Problem p = problem_of(args);
  float* total = args[4].as<float>("total", {1});
  float* dh = wanted == Wanted::kLoss ? nullptr : args[5].as<float>("dhidden", {p.t, p.h});
  float* dw = wanted == Wanted::kGradients ? args[6].as<float>("dweight", {p.v, p.h}) : nullptr;
  *total = Blocks<T>(p, wanted, dh, dw).run();
}

}  // namespace

// hidden (T, H), weight (V, H) float32, labels (T) int32, mask (T) float32 -> total (1)
MF_OP(HeadLossF32) { head_loss<float>(args, Wanted::kLoss); }
MF_OP(HeadLossBf16) { head_loss<mf::bf16>(args, Wanted::kLoss); }

// ... -> total (1), dhidden (T, H): for a frozen weight
MF_OP(HeadLossInputGradF32) { head_loss<float>(args, Wanted::kInputGradient); }
MF_OP(HeadLossInputGradBf16) { head_loss<mf::bf16>(args, Wanted::kInputGradient); }

// ... -> total (1), dhidden (T, H), dweight (V, H)
MF_OP(HeadLossGradF32) { head_loss<float>(args, Wanted::kGradients); }
MF_OP(HeadLossGradBf16) { head_loss<mf::bf16>(args, Wanted::kGradients); }

// x (A, B), factor (1) -> x * factor
MF_OP(ScaleBy) {
  args.require_count(3);
  const int64_t a = args[0].dim(0), b = args[0].dim(1);
  const float* x = args[0].as<float>("x", {a, b});
  const float factor = *args[1].as<float>("factor", {1});
  float* y = args[2].as<float>("y", {a, b});
  mf::for_each_range(a * b, 16384, [&](int64_t begin, int64_t end) {
    mf::cross_entropy_kernels().scale(x + begin, factor, end - begin, y + begin);
  });
}

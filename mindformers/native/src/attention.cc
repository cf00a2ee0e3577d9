// SPDX-License-Identifier: Apache-2.0
// Operators of self-attention: blocks of query rows, three or six matrix products each.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu_features.h"
#include "custom_op.h"
#include "gemm.h"
#include "scratch.h"
#include "thread_pool.h"

MF_DISPATCH(AttentionTable, attention_kernels)

namespace {

using mf::Span;

constexpr int64_t kBlock = 64;  // query rows handled together

template <class T>
const mf::AttentionKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return mf::attention_kernels().f32;
  } else {
    return mf::attention_kernels().b16;
  }
}

// Sizes and inputs of a call. Rows of q are (N, D), of k and v (K, D), of table D.
struct Problem {
  int64_t batch, length, heads, kv_heads, d;
  const float *q, *k, *v, *table;
  const uint8_t* visible;
  int64_t table_batches, mask_batches;  // 1: one for all sequences
  std::vector<Span> spans;

  int64_t group() const { return heads / kv_heads; }
  const float* table_row(int64_t b, int64_t i) const { return table + ((table_batches == 1 ? 0 : b) * length + i) * d; }
  int64_t mask_row(int64_t b, int64_t i) const { return (mask_batches == 1 ? 0 : b) * length + i; }
  const Span& span(int64_t b, int64_t i) const { return spans[mask_row(b, i)]; }
  const uint8_t* mask(int64_t b, int64_t i) const { return visible + mask_row(b, i) * length; }
};

Span span_of(const uint8_t* visible, int64_t length) {
  int64_t begin = 0, end = length;
  while (begin < length && visible[begin] == 0) ++begin;
  while (end > begin && visible[end - 1] == 0) --end;
  const bool solid = std::memchr(visible + begin, 0, static_cast<size_t>(end - begin)) == nullptr;
  return {static_cast<int32_t>(begin), static_cast<int32_t>(end), solid};
}

// Inputs 0 to 4: q (T, N D), k (T, K D), v (T, K D), table (B or 1, S, D), visible (B or 1, S, S).
Problem problem_of(const mf::Args& args) {
  Problem p{};
  p.length = args[3].dim(1);
  p.d = args[3].dim(2);
  p.table_batches = args[3].dim(0);
  p.mask_batches = args[4].dim(0);
  const int64_t t = args[0].dim(0), q_width = args[0].dim(1), kv_width = args[1].dim(1);
  mf::require(p.length > 0 && p.d > 0 && p.d % 2 == 0,
              "table must be (B or 1, S, D) with an even D, got " + args[3].describe());
  mf::require(t % p.length == 0,
              "rows of q must be a multiple of S = " + std::to_string(p.length) + ", got " + args[0].describe());
  mf::require(kv_width > 0 && kv_width % p.d == 0 && q_width > 0 && q_width % kv_width == 0,
              "widths of q and k must be N D and K D with N a multiple of K and D = " + std::to_string(p.d) + ", got " +
                  args[0].describe() + " and " + args[1].describe());
  p.batch = t / p.length;
  p.heads = q_width / p.d;
  p.kv_heads = kv_width / p.d;
  mf::require(
      (p.table_batches == 1 || p.table_batches == p.batch) && (p.mask_batches == 1 || p.mask_batches == p.batch),
      "table and mask must be of 1 or " + std::to_string(p.batch) + " sequences, got " + args[3].describe() + " and " +
          args[4].describe());
  p.q = args[0].as<float>("q", {t, q_width});
  p.k = args[1].as<float>("k", {t, kv_width});
  p.v = args[2].as<float>("v", {t, kv_width});
  p.table = args[3].as<float>("table", {p.table_batches, p.length, p.d});
  p.visible = reinterpret_cast<const uint8_t*>(args[4].as<bool>("visible", {p.mask_batches, p.length, p.length}));
  p.spans.resize(static_cast<size_t>(p.mask_batches * p.length));
  mf::for_each_range(p.mask_batches * p.length, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p.spans[i] = span_of(p.visible + i * p.length, p.length);
  });
  return p;
}

// What the keys and values of one sequence and key/value head become for the products.
template <class T>
class Keys {
 public:
  Keys(const Problem& p, int64_t b, int64_t head) : store_(2 * p.length * p.d), d_(p.d) {
    const int64_t stride = p.kv_heads * p.d;
    const float* k = p.k + (b * p.length) * stride + head * p.d;
    const float* v = p.v + (b * p.length) * stride + head * p.d;
    for (int64_t i = 0; i < p.length; ++i) {
      kernels<T>().rotate(k + i * stride, p.table_row(b, i), 1.0f, p.d, store_.data() + i * p.d);
      kernels<T>().round(v + i * stride, p.d, store_.data() + (p.length + i) * p.d);
    }
    length_ = p.length;
  }
  const T* key(int64_t i) const { return store_.data() + i * d_; }
  const T* value(int64_t i) const { return store_.data() + (length_ + i) * d_; }

 private:
  mf::Scratch<T> store_;
  int64_t d_, length_ = 0;
};

// Rotated queries and probabilities of kBlock rows of one head.
template <class T>
struct Block {
  explicit Block(const Problem& p)
      : query(kBlock * p.d), scores(kBlock * p.length), rounded(std::is_same_v<T, float> ? 0 : kBlock * p.length) {}

  // Rows [begin, end) of head `head` of sequence `b`.
  void compute(const Problem& p, const Keys<T>& keys, int64_t b, int64_t head, int64_t begin, int64_t end) {
    const int64_t stride = p.heads * p.d;
    first = p.length, width = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Span& span = p.span(b, i);
      const bool none = span.begin == span.end;
      first = std::min<int64_t>(first, none ? 0 : span.begin);
      width = std::max<int64_t>(width, none ? p.length : span.end);
      kernels<T>().rotate(p.q + (b * p.length + i) * stride + head * p.d, p.table_row(b, i),
                          1.0f / std::sqrt(static_cast<float>(p.d)), p.d, query.data() + (i - begin) * p.d);
    }
    width -= first;
    mf::gemm('N', 'T', end - begin, width, p.d, query.data(), p.d, keys.key(first), p.d, 0.0f, scores.data(), width);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = (i - begin) * width;
      kernels<T>().softmax(scores.data() + at, p.span(b, i), p.mask(b, i), first, width, probabilities() + at);
    }
  }

  T* probabilities() const {
    if constexpr (std::is_same_v<T, float>) {
      return scores.data();
    } else {
      return rounded.data();
    }
  }

  mf::Scratch<T> query;
  mf::Scratch<float> scores;
  mf::Scratch<T> rounded;
  int64_t first = 0, width = 0;  // keys the rows see
};

// Query heads of a unit of work: a whole group, or one head where groups are fewer than threads.
int64_t parts_of_group(const Problem& p) { return p.batch * p.kv_heads < 2 * mf::num_threads() ? p.group() : 1; }

template <class T>
void forward(const mf::Args& args) {
  args.require_count(6);
  const Problem p = problem_of(args);
  const int64_t stride = p.heads * p.d;
  float* out = args[5].as<float>("out", {p.batch * p.length, stride});
  const int64_t parts = parts_of_group(p), heads = p.group() / parts;
  mf::for_each_chunk(static_cast<int>(p.batch * p.kv_heads * parts), [&](int unit) {
    const int64_t b = unit / (p.kv_heads * parts), kv = unit / parts % p.kv_heads;
    const Keys<T> keys(p, b, kv);
    Block<T> block(p);
    for (int64_t head = kv * p.group() + unit % parts * heads, last = head + heads; head < last; ++head) {
      for (int64_t begin = 0; begin < p.length; begin += kBlock) {
        const int64_t end = std::min(p.length, begin + kBlock);
        block.compute(p, keys, b, head, begin, end);
        mf::gemm('N', 'N', end - begin, p.d, block.width, block.probabilities(), block.width, keys.value(block.first),
                 p.d, 0.0f, out + (b * p.length + begin) * stride + head * p.d, stride);
      }
    }
  });
}

// Gradients of one sequence and key/value head.
template <class T>
class Backward {
 public:
  Backward(const Problem& p, int64_t b, int64_t kv)
      : p_(p),
        b_(b),
        kv_(kv),
        keys_(p, b, kv),
        block_(p),
        dout_(kBlock * p.d),
        dscores_(kBlock * p.length),
        dscores_rounded_(kBlock * p.length),
        dquery_(kBlock * p.d),
        dkey_(p.length * p.d),
        dvalue_(p.length * p.d) {}

  void run(const float* dout, float* dq, float* dk, float* dv) {
    const int64_t n = p_.length * p_.d;
    std::fill_n(dkey_.data(), n, 0.0f);
    std::fill_n(dvalue_.data(), n, 0.0f);
    for (int64_t head = kv_ * p_.group(); head < (kv_ + 1) * p_.group(); ++head) {
      for (int64_t begin = 0; begin < p_.length; begin += kBlock) {
        rows(head, begin, std::min(p_.length, begin + kBlock), dout, dq);
      }
    }
    const int64_t stride = p_.kv_heads * p_.d;
    for (int64_t i = 0; i < p_.length; ++i) {
      const int64_t at = (b_ * p_.length + i) * stride + kv_ * p_.d;
      kernels<T>().rotate_back(dkey_.data() + i * p_.d, p_.table_row(b_, i), 1.0f, p_.d, dk + at);
      std::copy_n(dvalue_.data() + i * p_.d, p_.d, dv + at);
    }
  }

 private:
  void rows(int64_t head, int64_t begin, int64_t end, const float* dout, float* dq) {
    const int64_t d = p_.d, stride = p_.heads * d, m = end - begin;
    const int64_t offset = (b_ * p_.length + begin) * stride + head * d;
    block_.compute(p_, keys_, b_, head, begin, end);
    const int64_t first = block_.first, width = block_.width;
    for (int64_t i = 0; i < m; ++i) kernels<T>().round(dout + offset + i * stride, d, dout_.data() + i * d);
    mf::gemm('T', 'N', width, d, m, block_.probabilities(), width, dout_.data(), d, 1.0f, dvalue_.data() + first * d,
             d);
    mf::gemm('N', 'T', m, width, d, dout_.data(), d, keys_.value(first), d, 0.0f, dscores_.data(), width);
    for (int64_t i = 0; i < m; ++i) {
      kernels<T>().score_gradient(block_.scores.data() + i * width, dscores_.data() + i * width, width,
                                  dscores_rounded_.data() + i * width);
    }
    mf::gemm('N', 'N', m, d, width, dscores_rounded_.data(), width, keys_.key(first), d, 0.0f, dquery_.data(), d);
    mf::gemm('T', 'N', width, d, m, dscores_rounded_.data(), width, block_.query.data(), d, 1.0f,
             dkey_.data() + first * d, d);
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    for (int64_t i = 0; i < m; ++i) {
      kernels<T>().rotate_back(dquery_.data() + i * d, p_.table_row(b_, begin + i), scale, d, dq + offset + i * stride);
    }
  }

  const Problem& p_;
  int64_t b_, kv_;
  Keys<T> keys_;
  Block<T> block_;
  mf::Scratch<T> dout_;
  mf::Scratch<float> dscores_;
  mf::Scratch<T> dscores_rounded_;
  mf::Scratch<float> dquery_, dkey_, dvalue_;
};

template <class T>
void backward(const mf::Args& args) {
  args.require_count(9);
  const Problem p = problem_of(args);
  const int64_t t = p.batch * p.length, q_width = p.heads * p.d, kv_width = p.kv_heads * p.d;
  const float* dout = args[5].as<float>("dout", {t, q_width});
  float* dq = args[6].as<float>("dq", {t, q_width});
  float* dk = args[7].as<float>("dk", {t, kv_width});
  float* dv = args[8].as<float>("dv", {t, kv_width});
  mf::for_each_chunk(static_cast<int>(p.batch * p.kv_heads),
                     [&](int unit) { Backward<T>(p, unit / p.kv_heads, unit % p.kv_heads).run(dout, dq, dk, dv); });
}

}  // namespace

// q (T, N D), k (T, K D), v (T, K D), table (B or 1, S, D) float32, visible (B or 1, S, S) bool -> out (T, N D)
MF_OP(AttentionF32) { forward<float>(args); }
MF_OP_SHAPE(AttentionF32) { return shapes.of(0); }
MF_OP(AttentionBf16) { forward<mf::bf16>(args); }
MF_OP_SHAPE(AttentionBf16) { return shapes.of(0); }

// the same five, dout (T, N D) -> dq (T, N D), dk (T, K D), dv (T, K D)
MF_OP(AttentionGradF32) { backward<float>(args); }
MF_OP(AttentionGradBf16) { backward<mf::bf16>(args); }

// SPDX-License-Identifier: Apache-2.0
// A whole step of a Llama over its key/value cache, as one operator: tokens -> logits; or several steps that take the
// likeliest token each time.
//
// Legend: B sequences, S new tokens of each at most, H hidden, N query heads, K key/value heads, D head size, F width
// of the feed-forward, V vocabulary, L positions of a sequence in the cache, P rows of the rotary table.
//
// All new tokens of all sequences are rows; at most kRows of them are taken at a time, so that a weight is read once
// for many rows. A step of generation is S = 1, reading a prompt is S = its length.
#include "decode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "attention.h"
#include "cpu_features.h"
#include "custom_op.h"
#include "norm.h"
#include "swiglu.h"
#include "thread_pool.h"

MF_DISPATCH(DecodeKernels, decode_kernels)
MF_DISPATCH(ProductKernels, product_kernels)

namespace mf {
namespace {

constexpr int64_t kRows = 64;
constexpr int64_t kGreedyTokens = 32;           // most tokens a call makes
constexpr int64_t kChunkBytes = 128 * 1024;     // of a weight: fits into the second-level cache beside the rows
constexpr int64_t kSerialProducts = 64 * 1024;  // fewer multiplications than this are not worth waking a thread

WeightFormat format_of(const Arg& arg, bool int8_too) {
  switch (arg.dtype()) {
    case DType::kFloat32:
      return WeightFormat::kFloat32;
    case DType::kBFloat16:
      return WeightFormat::kBFloat16;
    case DType::kInt8:
      if (int8_too) return WeightFormat::kInt8;
      [[fallthrough]];
    default:
      throw OpError("float32" + std::string(int8_too ? ", bfloat16 or int8" : " or bfloat16") + " expected, got " +
                    arg.describe());
  }
}

// The arguments in their order.
class Reader {
 public:
  Reader(const Args& args, int first) : args_(args), index_(first) {}

  Arg next() { return args_[index_++]; }
  int64_t left() const { return args_.count() - index_; }

  template <class T>
  T* take(const char* name, std::initializer_list<int64_t> shape) {
    return next().as<T>(name, shape);
  }

 private:
  const Args& args_;
  int index_;
};

struct Layer {
  const float* attention_norm;
  const float* ffn_norm;
  Weight q, k, v, o, gate, up, down;
  void* keys;  // (slots K L, D): a row per sequence, head and position
  void* values;
};

struct Llama {
  int64_t hidden, heads, kv_heads, d, ffn, vocab, rotary_rows, length, cache_rows;
  float eps;
  const void* embedding;
  WeightFormat embedding_format, cache_format;
  const float* rotary;
  const float* norm;
  Weight head;
  std::vector<Layer> layers;
};

// A weight without its scales, (rows, cols); kAny is read from the argument.
Weight weight_of(const Arg& arg, const char* name, int64_t rows, int64_t cols, WeightFormat format) {
  require(format_of(arg, true) == format,
          std::string(name) + ": all weights of a model are of one type, got " + arg.describe());
  Weight weight;
  weight.data = arg.raw(name, {rows, cols});
  weight.rows = arg.dim(0);
  weight.cols = arg.dim(1);
  weight.format = format;
  return weight;
}

Layer read_layer(Reader& reader, Llama& llama) {
  const int64_t h = llama.hidden, d = llama.d;
  const WeightFormat format = llama.head.format;
  Layer layer{};
  layer.attention_norm = reader.take<float>("attention_norm", {h});
  layer.ffn_norm = reader.take<float>("ffn_norm", {h});
  layer.q = weight_of(reader.next(), "wq", kAny, h, format);
  layer.k = weight_of(reader.next(), "wk", kAny, h, format);
  if (llama.heads == 0) {
    require(layer.q.rows % d == 0 && layer.k.rows % d == 0 && layer.k.rows > 0 && layer.q.rows % layer.k.rows == 0,
            "rows of wq and wk do not divide into heads of size " + std::to_string(d));
    llama.heads = layer.q.rows / d;
    llama.kv_heads = layer.k.rows / d;
  }
  require(layer.q.rows == llama.heads * d && layer.k.rows == llama.kv_heads * d, "layers differ in their heads");
  layer.v = weight_of(reader.next(), "wv", layer.k.rows, h, format);
  layer.o = weight_of(reader.next(), "wo", h, layer.q.rows, format);
  layer.gate = weight_of(reader.next(), "w1", kAny, h, format);
  layer.up = weight_of(reader.next(), "w3", layer.gate.rows, h, format);
  layer.down = weight_of(reader.next(), "w2", h, layer.gate.rows, format);
  require(llama.ffn == 0 || llama.ffn == layer.gate.rows, "layers differ in their feed-forward width");
  llama.ffn = layer.gate.rows;
  if (format == WeightFormat::kInt8) {
    for (Weight* weight : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      weight->scale = reader.take<float>("scale", {weight->rows});
    }
  }
  return layer;
}

// The key caches of all layers, then the value caches.
void read_caches(Reader& reader, Llama& llama) {
  bool first = true;
  for (const bool values : {false, true}) {
    for (Layer& layer : llama.layers) {
      const Arg cache = reader.next();
      if (first) llama.cache_format = format_of(cache, false), llama.cache_rows = cache.dim(0);
      first = false;
      require(format_of(cache, false) == llama.cache_format, "caches differ in type");
      (values ? layer.values : layer.keys) = cache.raw("cache", {llama.cache_rows, llama.d});
    }
  }
}

// What the arguments after the first four are; the last is the result.
Llama read_llama(Reader& reader) {
  Llama llama{};
  llama.length = *reader.take<int32_t>("cache_length", {1});
  llama.eps = *reader.take<float>("eps", {1});
  const Arg embedding = reader.next(), rotary = reader.next(), norm = reader.next(), head = reader.next();
  llama.embedding_format = format_of(embedding, false);
  llama.embedding = embedding.raw("embedding", {kAny, kAny});
  llama.vocab = embedding.dim(0);
  llama.hidden = embedding.dim(1);
  llama.rotary = rotary.as<float>("rotary", {kAny, kAny});
  llama.rotary_rows = rotary.dim(0);
  llama.d = rotary.dim(1);
  require(llama.length > 0 && llama.vocab > 0 && llama.hidden > 0 && llama.d > 0 && llama.d % 2 == 0,
          "sizes must be positive and the head size even");
  llama.norm = norm.as<float>("norm_out", {llama.hidden});
  llama.head = weight_of(head, "head", llama.vocab, llama.hidden, format_of(head, true));
  const bool scaled = llama.head.format == WeightFormat::kInt8;
  if (scaled) llama.head.scale = reader.take<float>("scale", {llama.vocab});
  const int64_t weights = scaled ? 16 : 9, left = reader.left() - 1;
  require(left > 0 && left % (weights + 2) == 0, "takes " + std::to_string(weights) +
                                                     " weights and two caches for each layer, got " +
                                                     std::to_string(left) + " tensors");
  for (int64_t i = 0; i < left / (weights + 2); ++i) llama.layers.push_back(read_layer(reader, llama));
  read_caches(reader, llama);
  return llama;
}

// One new token.
struct Row {
  int32_t token;
  int32_t sequence;
  int64_t position;
  bool last;  // of its sequence: its logits are wanted
};

// body(begin, end) over the n rows of weights of `row_bytes` each that `count` rows are multiplied with.
template <class F>
void for_weight_rows(int64_t n, int64_t cols, WeightFormat format, int64_t count, F&& body) {
  const int threads = num_threads();
  const int64_t units = (n + kWeightRows - 1) / kWeightRows;
  if (threads == 1 || units == 1 || n * cols * count < kSerialProducts) return body(0, n);
  const int64_t bytes = n * cols * bytes_of(format);
  const int64_t each = std::min<int64_t>(64, std::max<int64_t>(1, bytes / (threads * kChunkBytes)));
  const int parts = static_cast<int>(std::min(units, threads * each));
  for_each_chunk(parts, [&](int part) {
    const Range range = part_of(n, parts, part, kWeightRows);
    if (range.begin < range.end) body(range.begin, range.end);
  });
}

// y (count, rows) (+)= x weight^T
void multiply(const Weight& weight, const float* x, int64_t count, float* y, bool add) {
  const auto& kernels = product_kernels();
  for_weight_rows(weight.rows, weight.cols, weight.format, count, [&](int64_t begin, int64_t end) {
    kernels.product(weight, x, count, begin, end, y, weight.rows, add);
  });
}

class Step {
 public:
  Step(const Llama& llama, int64_t first_row) : m_(llama), first_row_(first_row) {}

  // Takes at most kRows rows; writes their keys and values, and logits (sequence, V) of those that are the last.
  void run(std::vector<Row> rows, float* logits) {
    rows_ = std::move(rows);
    const int64_t h = m_.hidden, width = m_.heads * m_.d;
    x_.resize(rows_.size() * h);
    for (size_t i = 0; i < rows_.size(); ++i) {
      const int64_t at = rows_[i].token * h * bytes_of(m_.embedding_format);
      decode_kernels().widen(static_cast<const char*>(m_.embedding) + at, m_.embedding_format, &x_[i * h], h);
    }
    for (size_t i = 0; i < m_.layers.size(); ++i) {
      const Layer& layer = m_.layers[i];
      project(layer);
      if (i + 1 == m_.layers.size()) keep_last_rows(width);
      if (rows_.empty()) return;
      attend(layer);
      multiply(layer.o, attended_.data(), count(), x_.data(), true);
      feed_forward(layer);
    }
    normalize(m_.norm);
    // rows are in the order of their sequences, each of which has one last row: these follow one another
    multiply(m_.head, normed_.data(), count(), logits + rows_[0].sequence * m_.vocab, false);
  }

 private:
  int64_t count() const { return static_cast<int64_t>(rows_.size()); }

  // Row of the cache that holds position 0 of a head.
  int64_t cache_row(const Row& row, int64_t kv_head) const {
    return first_row_ + (row.sequence * m_.kv_heads + kv_head) * m_.length;
  }

  void normalize(const float* weight) {
    normed_.resize(x_.size());
    for (int64_t i = 0; i < count(); ++i) {
      norm_kernels().forward(&x_[i * m_.hidden], weight, m_.eps, m_.hidden, &normed_[i * m_.hidden]);
    }
  }

  // Queries, turned and scaled, into q_; keys, turned, and values into the cache.
  void project(const Layer& layer) {
    normalize(layer.attention_norm);
    const int64_t width = layer.q.rows, kv = layer.k.rows, n = count();
    q_.resize(n * width);
    k_.resize(n * kv);
    v_.resize(n * kv);
    const struct {
      const Weight& weight;
      float* y;
      int64_t begin;
    } products[] = {{layer.q, q_.data(), 0}, {layer.k, k_.data(), width}, {layer.v, v_.data(), width + kv}};
    for_weight_rows(width + 2 * kv, m_.hidden, layer.q.format, n, [&](int64_t begin, int64_t end) {
      for (const auto& [weight, y, offset] : products) {
        const int64_t from = std::max<int64_t>(begin - offset, 0), to = std::min(end - offset, weight.rows);
        if (from < to) product_kernels().product(weight, normed_.data(), n, from, to, y, weight.rows, false);
      }
    });
    for (int64_t i = 0; i < n; ++i) place(layer, i);
  }

  void place(const Layer& layer, int64_t i) {
    if (m_.cache_format == WeightFormat::kBFloat16) {
      place_as<bf16>(layer, i, attention_kernels().b16);
    } else {
      place_as<float>(layer, i, attention_kernels().f32);
    }
  }

  template <class T>
  void place_as(const Layer& layer, int64_t i, const AttentionKernels<T>& kernels) {
    const Row& row = rows_[i];
    const int64_t d = m_.d, kv = m_.kv_heads;
    const float* angles = m_.rotary + row.position * d;
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    for (int64_t head = 0; head < m_.heads; ++head) {
      float* q = &q_[(i * m_.heads + head) * d];
      attention_kernels().f32.rotate(q, angles, scale, d, q);
    }
    for (int64_t head = 0; head < kv; ++head) {
      const int64_t at = (cache_row(row, head) + row.position) * d;
      kernels.rotate(&k_[(i * kv + head) * d], angles, 1.0f, d, static_cast<T*>(layer.keys) + at);
      kernels.round(&v_[(i * kv + head) * d], d, static_cast<T*>(layer.values) + at);
    }
  }

  // In the last layer the other rows have nothing left to do.
  void keep_last_rows(int64_t width) {
    size_t kept = 0;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (!rows_[i].last) continue;
      if (kept != i) {
        rows_[kept] = rows_[i];
        std::memcpy(&x_[kept * m_.hidden], &x_[i * m_.hidden], m_.hidden * sizeof(float));
        std::memcpy(&q_[kept * width], &q_[i * width], width * sizeof(float));
      }
      ++kept;
    }
    rows_.resize(kept);
    x_.resize(kept * m_.hidden);
    q_.resize(kept * width);
  }

  // A part is the query heads of one key/value head at one row; where these are fewer than threads, a group's heads are
  // divided.
  void attend(const Layer& layer) {
    const int64_t d = m_.d, group = m_.heads / m_.kv_heads;
    int64_t split = 1;  // parts a group is cut into
    while (split < group && (count() * m_.kv_heads * split < num_threads() || group % split != 0)) ++split;
    const int64_t heads = group / split, parts = m_.kv_heads * split;
    attended_.resize(count() * m_.heads * d);
    int64_t products = 0;
    for (const Row& row : rows_) products += (row.position + 1) * m_.heads * d * 2;
    const auto part_of_row = [&](int64_t item, std::vector<float>& scores) {
      const int64_t i = item / parts, part = item % parts;
      const int64_t at = cache_row(rows_[i], part / split) * d * bytes_of(m_.cache_format);
      const int64_t length = rows_[i].position + 1;
      const int64_t place = (i * m_.heads + part * heads) * d;  // heads of a group, and its parts, are neighbours
      scores.resize(heads * length);
      decode_kernels().attend({&q_[place], static_cast<char*>(layer.keys) + at, static_cast<char*>(layer.values) + at,
                               m_.cache_format, heads, length, d, scores.data(), &attended_[place]});
    };
    const auto items = [&](int64_t begin, int64_t end) {
      std::vector<float> scores;
      for (int64_t item = begin; item < end; ++item) part_of_row(item, scores);
    };
    if (products < kSerialProducts) return items(0, count() * parts);
    for_each_range(count() * parts, 1, items);
  }

  void feed_forward(const Layer& layer) {
    normalize(layer.ffn_norm);
    const int64_t f = m_.ffn, n = count();
    gate_.resize(n * f);
    up_.resize(n * f);
    // twice the rows: a chunk holds those of both weights
    for_weight_rows(f, 2 * m_.hidden, layer.gate.format, n, [&](int64_t begin, int64_t end) {
      product_kernels().product(layer.gate, normed_.data(), n, begin, end, gate_.data(), f, false);
      product_kernels().product(layer.up, normed_.data(), n, begin, end, up_.data(), f, false);
      for (int64_t i = 0; i < n; ++i) {
        float* gate = &gate_[i * f + begin];
        swiglu_kernels().forward(gate, &up_[i * f + begin], end - begin, gate);
      }
    });
    multiply(layer.down, gate_.data(), n, x_.data(), true);
  }

  const Llama& m_;
  int64_t first_row_;
  std::vector<Row> rows_;
  std::vector<float> x_, normed_, q_, k_, v_, attended_, gate_, up_;
};

// The arguments from `first` on: tokens (B, S), begin (B), lengths (B), first_row (1), the model, and last the result.
// Sequence b takes lengths[b] of its S tokens, at positions begin[b] on; its cache begins at row first_row + b K L. A
// begin or a length that all sequences share may be given once.
struct Request {
  Llama llama;
  int64_t first_row;
  std::vector<Row> rows;
};

Request read_request(const Args& args, int first) {
  Request request;
  Reader reader(args, first);
  const Arg tokens_arg = reader.next();
  const int64_t b = tokens_arg.dim(0), s = tokens_arg.dim(1);
  const int32_t* tokens = tokens_arg.as<int32_t>("tokens", {b, s});
  const auto each = [&](const char* name) {
    const Arg arg = reader.next();
    const bool shared = arg.size() == 1;
    const int32_t* values = arg.as<int32_t>(name, {shared ? 1 : b});
    return [values, shared](int64_t i) { return int64_t{values[shared ? 0 : i]}; };
  };
  const auto begins = each("begin");
  const auto lengths = each("lengths");
  const int64_t first_row = request.first_row = *reader.take<int32_t>("first_row", {1});
  const Llama& llama = request.llama = read_llama(reader);
  require(first_row >= 0 && first_row + b * llama.kv_heads * llama.length <= llama.cache_rows,
          std::to_string(b) + " sequences from row " + std::to_string(first_row) + " do not fit into caches of " +
              std::to_string(llama.cache_rows) + " rows");
  const int64_t most = std::min(llama.length, llama.rotary_rows);
  for (int64_t i = 0; i < b; ++i) {
    const int64_t begin = begins(i), length = lengths(i);
    require(length >= 1 && length <= s && begin >= 0 && begin + length <= most,
            "sequence " + std::to_string(i) + ": " + std::to_string(length) + " of " + std::to_string(s) +
                " tokens from position " + std::to_string(begin) + " on do not fit into " + std::to_string(most) +
                " positions");
    for (int64_t j = 0; j < length; ++j) {
      const int32_t token = tokens[i * s + j];
      require(token >= 0 && token < llama.vocab,
              "token " + std::to_string(token) + " is not below the vocabulary " + std::to_string(llama.vocab));
      request.rows.push_back({token, static_cast<int32_t>(i), begin + j, j + 1 == length});
    }
  }
  return request;
}

// logits (B, V)
void decode(const Request& request, float* logits) {
  Step step(request.llama, request.first_row);
  for (size_t from = 0; from < request.rows.size(); from += kRows) {
    const auto begin = request.rows.begin() + from;
    step.run({begin, begin + std::min<size_t>(kRows, request.rows.end() - begin)}, logits);
  }
}

// `steps` times: the likeliest token of each sequence, which becomes its next one. A sequence whose last token is one
// of `ends` is over and repeats it; nothing more is done when all are over. next (B, kGreedyTokens) is -1 behind the
// last.
void decode_greedily(Request request, int64_t b, int64_t steps, const int32_t* ends, int64_t num_ends, int32_t* next) {
  const int64_t vocab = request.llama.vocab, last = std::min(request.llama.length, request.llama.rotary_rows) - 1;
  const auto is_end = [&](int32_t token) { return std::find(ends, ends + num_ends, token) != ends + num_ends; };
  std::fill_n(next, b * kGreedyTokens, -1);
  std::vector<float> logits(b * vocab);
  for (int64_t step = 0; step < steps; ++step) {
    decode(request, logits.data());
    bool all_over = true;
    std::vector<Row> rows;
    for (const Row& row : request.rows) {
      if (!row.last) continue;
      const float* scores = &logits[row.sequence * vocab];
      const int32_t token =
          is_end(row.token) ? row.token : static_cast<int32_t>(decode_kernels().first_highest(scores, vocab));
      next[row.sequence * kGreedyTokens + step] = token;
      all_over = all_over && is_end(token);
      rows.push_back({token, row.sequence, std::min(row.position + 1, last), true});
    }
    if (all_over) return;
    request.rows = std::move(rows);
  }
}

}  // namespace
}  // namespace mf

// Arguments 0 and 6 are the tokens (B, S) and the embedding (V, H).
MF_OP_SHAPE(LlamaLogits) { return {shapes.dim(0, 0), shapes.dim(6, 0)}; }

// -> logits (B, V) of the token after each sequence's last
MF_OP(LlamaLogits) {
  const mf::Request request = mf::read_request(args, 0);
  float* logits = args[args.count() - 1].as<float>("logits", {args[0].dim(0), request.llama.vocab});
  mf::decode(request, logits);
}

// Argument 2 is the tokens (B, S).
MF_OP_SHAPE(LlamaGreedy) { return {shapes.dim(2, 0), mf::kGreedyTokens}; }

// steps (1), ends (E), then what LlamaLogits takes -> int32 (B, kGreedyTokens); the first among equals is the
// likeliest. A finished sequence beside longer ones stays at the last position of its own cache.
MF_OP(LlamaGreedy) {
  const int64_t steps = *args[0].as<int32_t>("steps", {1});
  mf::require(steps >= 1 && steps <= mf::kGreedyTokens,
              "steps must be 1 to " + std::to_string(mf::kGreedyTokens) + ", got " + std::to_string(steps));
  const int32_t* ends = args[1].as<int32_t>("ends", {mf::kAny});
  const int64_t b = args[2].dim(0);
  int32_t* next = args[args.count() - 1].as<int32_t>("next", {b, mf::kGreedyTokens});
  mf::decode_greedily(mf::read_request(args, 2), b, steps, ends, args[1].dim(0), next);
}

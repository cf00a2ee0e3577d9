// SPDX-License-Identifier: Apache-2.0
// The step of a Llama, rows to int8 and products with packed weights: sizes, types and positions at random. Values are
// compared with references by tests/unit/native; here every buffer ends where its tensor ends.
#include <cstdint>

#include "campaign.h"

MF_DECLARE_OP(LlamaLogits);
MF_DECLARE_OP(LlamaGreedy);
MF_DECLARE_OP(QuantizeRows);
MF_DECLARE_OP(PackedLinear);

namespace {

using campaign::call;
using campaign::expect;
using campaign::make;
using campaign::normal;
using campaign::Random;
using campaign::run;
using campaign::Tensor;

Tensor whole(std::vector<int64_t> shape, Random& random, int64_t low, int64_t high) {
  Tensor tensor = make<int32_t>(std::move(shape));
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.as<int32_t>()[i] = static_cast<int32_t>(random.whole(low, high));
  return tensor;
}

// A weight in one of three types; the scales of int8 go to `scales`.
Tensor weight(Random& random, int64_t kind, int64_t rows, int64_t cols, std::vector<Tensor>& scales) {
  if (kind == 0) return normal(random, {rows, cols});
  if (kind == 1) {
    Tensor tensor = make<uint16_t>({rows, cols});
    for (int64_t i = 0; i < tensor.size(); ++i)
      tensor.as<uint16_t>()[i] = static_cast<uint16_t>(random.whole(0, 0x3f80));
    return tensor;
  }
  Tensor tensor = make<int8_t>({rows, cols});
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.as<int8_t>()[i] = static_cast<int8_t>(random.whole(-127, 127));
  scales.push_back(normal(random, {rows}));
  return tensor;
}

bool all_finite(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.size(); ++i) {
    if (!std::isfinite(tensor.at(i))) return false;
  }
  return true;
}

}  // namespace

MF_CASE(Llama) {
  const int64_t kind = random.whole(0, 2), b = random.whole(1, 9), s = random.whole(1, 12), layers = random.whole(1, 3);
  const int64_t kv = random.whole(1, 3), heads = kv * random.whole(1, 5), d = 2 * random.whole(1, 20);
  const int64_t h = random.size(70), f = random.size(70), v = random.size(90), length = s + random.whole(0, 20);
  const int64_t slots = b + random.whole(0, 2), positions = length + random.whole(0, 3);
  const bool narrow_cache = random.chance(0.3);
  std::vector<Tensor> tensors{whole({b, s}, random, 0, v - 1), whole({b}, random, 0, length - s),
                              whole({b}, random, 1, s), whole({1}, random, 0, (slots - b) * kv * length)};
  Tensor length_tensor = make<int32_t>({1});
  length_tensor.as<int32_t>()[0] = static_cast<int32_t>(length);
  tensors.insert(tensors.end(), {length_tensor, campaign::scalar(1e-5f), normal(random, {v, h}),
                                 normal(random, {positions, d}), normal(random, {h})});
  std::vector<Tensor> scales;
  tensors.push_back(weight(random, kind, v, h, scales));
  tensors.insert(tensors.end(), scales.begin(), scales.end());
  for (int64_t i = 0; i < layers; ++i) {
    scales.clear();
    tensors.push_back(normal(random, {h}));
    tensors.push_back(normal(random, {h}));
    const int64_t shapes[][2] = {{heads * d, h}, {kv * d, h}, {kv * d, h}, {h, heads * d}, {f, h}, {f, h}, {h, f}};
    for (const auto& shape : shapes) tensors.push_back(weight(random, kind, shape[0], shape[1], scales));
    tensors.insert(tensors.end(), scales.begin(), scales.end());
  }
  for (int64_t i = 0; i < 2 * layers; ++i) {
    const std::vector<int64_t> shape{slots * kv * length, d};
    tensors.push_back(narrow_cache ? make<uint16_t>(shape) : make<float>(shape));
  }
  tensors.push_back(make<float>({b, v}));
  expect("LlamaLogits runs", call(LlamaLogits, tensors) == 0);
  expect("LlamaLogits is finite", all_finite(tensors.back()));
  std::vector<Tensor> greedy{whole({1}, random, 1, 32), whole({random.whole(1, 4)}, random, -1, v - 1)};
  greedy.insert(greedy.end(), tensors.begin(), tensors.end());
  greedy.back() = make<int32_t>({b, 32});
  expect("LlamaGreedy runs", call(LlamaGreedy, greedy) == 0);
  for (int64_t i = 0; i < greedy.back().size(); ++i) {
    const int32_t token = greedy.back().as<int32_t>()[i];
    expect("LlamaGreedy stays inside", token >= -1 && token < v);
  }
  greedy[0] = random.chance(0.5) ? whole({1}, random, 33, 99) : whole({1}, random, -9, 0);
  expect("steps without room", call(LlamaGreedy, greedy) != 0);
  greedy[0] = whole({1}, random, 1, 32);
  greedy.back() = make<int32_t>({b, 31});
  expect("tokens without room", call(LlamaGreedy, greedy) != 0);

  const auto refused = [&](const char* what, size_t place, Tensor bad) {
    std::vector<Tensor> changed = tensors;
    changed[place] = std::move(bad);
    expect(what, call(LlamaLogits, changed) != 0);
  };
  refused("token beyond the vocabulary", 0, whole({b, s}, random, v, v + 5));
  refused("negative token", 0, whole({b, s}, random, -5, -1));
  refused("position beyond the cache", 1, whole({b}, random, length, length + 3));
  refused("negative position", 1, whole({b}, random, -9, -1));
  refused("more tokens than given", 2, whole({b}, random, s + 1, s + 3));
  refused("no tokens", 2, whole({b}, random, -1, 0));
  refused("rows beyond the caches", 3, whole({1}, random, (slots - b) * kv * length + 1, slots * kv * length + 9));
  refused("negative first row", 3, whole({1}, random, -9, -1));
  refused("window beyond the caches", 4, whole({1}, random, slots * length + positions + 1, 1 << 30));
  for (size_t place = 6; place < tensors.size(); ++place) {  // one dimension too many, another type, too few columns
    refused("rank", place, normal(random, {1, 2, 3}));
    refused("type", place, whole(tensors[place].shape, random, 0, 3));
    if (tensors[place].shape.size() == 2) {
      refused("columns", place, make<float>({tensors[place].shape[0], tensors[place].shape[1] + 1}));
    }
    std::vector<Tensor> fewer = tensors;
    fewer.erase(fewer.begin() + static_cast<int64_t>(place));
    expect("a tensor too few", call(LlamaLogits, fewer) != 0);
  }
}

MF_CASE(PackedWeights) {
  const int64_t t = random.size(70), k = random.size(90), n = random.size(70);
  const Tensor packed = make<int8_t>({n, k}), scale = make<float>({n});
  run(random, "QuantizeRows", QuantizeRows, {normal(random, {n, k}), packed, scale});
  const Tensor source = normal(random, {n, k}), x = normal(random, {t, k}), y = make<float>({t, n});
  expect("QuantizeRows runs", call(QuantizeRows, {source, packed, scale}) == 0);
  expect("PackedLinear runs", call(PackedLinear, {x, packed, scale, y}) == 0);
  std::vector<double> expected(static_cast<size_t>(t * n), 0.0);
  for (int64_t i = 0; i < t; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t p = 0; p < k; ++p) {
        expected[i * n + j] += static_cast<double>(x.at(i * k + p)) * packed.as<int8_t>()[j * k + p] * scale.at(j);
      }
    }
  }
  campaign::expect_close("PackedLinear", y, expected, 2e-5, 1.0);
  run(random, "PackedLinear", PackedLinear, {x, packed, scale, y});
}

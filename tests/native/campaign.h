// SPDX-License-Identifier: Apache-2.0
// The randomized campaign of `make native-check`: operators are called as MindSpore calls them, with random sizes,
// inputs and defects, in buffers that end where the tensor ends, under AddressSanitizer and UBSan. A file of this
// folder adds cases with MF_CASE; tools/native_check.py compiles all of them with the kernels.
#ifndef TESTS_NATIVE_CAMPAIGN_H_
#define TESTS_NATIVE_CAMPAIGN_H_

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace campaign {

using Op = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t whole(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  float normal() { return std::normal_distribution<float>()(engine_); }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  // Sizes near vector lengths and block borders more often than others.
  int64_t size(int64_t most) {
    const int64_t edges[] = {1, 4, 8, 16, 32, 64};
    const int64_t wish = chance(0.5) ? edges[whole(0, 5)] + whole(-1, 1) : whole(1, most);
    return wish < 1 ? 1 : wish > most ? most : wish;
  }

 private:
  std::mt19937_64 engine_;
};

template <class T>
constexpr const char* kTypeName = std::is_same_v<T, float>      ? "float32"
                                  : std::is_same_v<T, uint16_t> ? "bfloat16"
                                  : std::is_same_v<T, int8_t>   ? "int8"
                                  : std::is_same_v<T, int32_t>  ? "int32"
                                                                : "bool";

// A tensor of a call, exactly as large as its elements.
struct Tensor {
  std::shared_ptr<void> data;
  std::vector<int64_t> shape;
  const char* dtype;

  int64_t size() const {
    int64_t product = 1;
    for (const int64_t extent : shape) product *= extent;
    return product;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data.get());
  }
  float at(int64_t i) const { return as<float>()[i]; }
};

template <class T>
Tensor make(std::vector<int64_t> shape) {
  Tensor tensor{nullptr, std::move(shape), kTypeName<T>};
  tensor.data = std::shared_ptr<void>(new T[tensor.size()](), [](void* p) { delete[] static_cast<T*>(p); });
  return tensor;
}

inline Tensor normal(Random& random, std::vector<int64_t> shape) {
  Tensor tensor = make<float>(std::move(shape));
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.as<float>()[i] = random.normal();
  return tensor;
}

inline Tensor scalar(float value) {
  Tensor tensor = make<float>({1});
  tensor.as<float>()[0] = value;
  return tensor;
}

int call(Op op, std::vector<Tensor> tensors);

// The operator succeeds on the tensors, and refuses them, without a crash, with one defect of each kind: a tensor too
// few or too many, a size too small, too large or negative, another rank, another dtype.
void run(Random& random, const std::string& name, Op op, const std::vector<Tensor>& tensors);

// L2 distance of a tensor and its reference is at most `tolerance` times the reference's norm, or times `usual` where
// that is larger: the norm such a tensor has as a rule, for sums that happen to cancel. Else the case fails.
void expect_close(const std::string& name, const Tensor& actual, const std::vector<double>& expected, double tolerance,
                  double usual = 1e-3);
void expect(const std::string& name, bool condition);

struct Case {
  const char* name;
  void (*body)(Random&);
};
std::vector<Case>& cases();
bool add_case(const char* name, void (*body)(Random&));

}  // namespace campaign

#define MF_CASE(name)                                                                     \
  static void name##Case(campaign::Random& random);                                       \
  [[maybe_unused]] static const bool name##Added = campaign::add_case(#name, name##Case); \
  static void name##Case(campaign::Random& random)

#define MF_DECLARE_OP(name) extern "C" int name(int, void**, int*, int64_t**, const char**, void*, void*)

#endif  // TESTS_NATIVE_CAMPAIGN_H_

// SPDX-License-Identifier: Apache-2.0
// Calls, defects and the loop of the campaign: program SECONDS SEED.
#include "campaign.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>

extern "C" void mindformers_native_set_threads(int);
extern "C" void mindformers_native_print_errors(int);
extern "C" const char* mindformers_native_isa();

namespace campaign {
namespace {
int g_failures = 0;
}

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

bool add_case(const char* name, void (*body)(Random&)) {
  cases().push_back({name, body});
  return true;
}

int call(Op op, std::vector<Tensor> tensors) {
  std::vector<void*> data;
  std::vector<int> ranks;
  std::vector<int64_t*> shapes;
  std::vector<const char*> dtypes;
  for (Tensor& tensor : tensors) {
    data.push_back(tensor.data.get());
    ranks.push_back(static_cast<int>(tensor.shape.size()));
    shapes.push_back(tensor.shape.data());
    dtypes.push_back(tensor.dtype);
  }
  return op(static_cast<int>(tensors.size()), data.data(), ranks.data(), shapes.data(), dtypes.data(), nullptr,
            nullptr);
}

void run(Random& random, const std::string& name, Op op, const std::vector<Tensor>& tensors) {
  expect(name + " succeeds", call(op, tensors) == 0);
  std::vector<Tensor> fewer(tensors.begin(), tensors.end() - 1), more = tensors;
  more.push_back(tensors.back());
  expect(name + " refuses a tensor too few", call(op, fewer) != 0);
  expect(name + " refuses a tensor too many", call(op, more) != 0);
  const auto at = static_cast<size_t>(random.whole(0, static_cast<int64_t>(tensors.size()) - 1));
  std::vector<Tensor> wrong = tensors;
  wrong[at].dtype = std::string(tensors[at].dtype) == "float32" ? "int8" : "float16";
  expect(name + " refuses another dtype", call(op, wrong) != 0);
  wrong = tensors;
  wrong[at].shape.push_back(1);
  expect(name + " refuses another rank", call(op, wrong) != 0);
  // A size that does not fit: of the last tensor, an output, whose sizes all follow from the inputs.
  wrong = tensors;
  auto& shape = wrong.back().shape;
  if (shape.empty()) return;
  auto& extent = shape[static_cast<size_t>(random.whole(0, static_cast<int64_t>(shape.size()) - 1))];
  const int64_t changes[] = {extent - 1, extent + 1, -extent, int64_t{1} << 40};
  extent = changes[random.whole(0, 3)];
  expect(name + " refuses another size", call(op, wrong) != 0);
}

void expect(const std::string& name, bool condition) {
  if (condition) return;
  std::printf("FAILED: %s\n", name.c_str());
  ++g_failures;
}

void expect_close(const std::string& name, const Tensor& actual, const std::vector<double>& expected, double tolerance,
                  double usual) {
  double difference = 0.0, size = 0.0;
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double d = actual.at(i) - expected[static_cast<size_t>(i)];
    difference += d * d;
    size += expected[static_cast<size_t>(i)] * expected[static_cast<size_t>(i)];
  }
  const double distance = std::sqrt(difference) / std::max(std::sqrt(size), usual);
  expect(name + ": distance " + std::to_string(distance) + " of at most " + std::to_string(tolerance),
         distance <= tolerance);
}

}  // namespace campaign

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 5.0;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  mindformers_native_print_errors(0);  // thousands of calls are refused on purpose
  std::map<std::string, int> rounds;
  const auto start = std::chrono::steady_clock::now();
  uint64_t round = 0;
  for (; std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds || round < 3;
       ++round) {
    mindformers_native_set_threads(static_cast<int>(round % 3) + 1);
    for (const campaign::Case& one : campaign::cases()) {
      campaign::Random random(seed + round);
      const int before = campaign::g_failures;
      one.body(random);
      ++rounds[one.name];
      if (campaign::g_failures != before) {
        std::printf("FAILED: case %s with seed %llu, %d threads, %s\n", one.name,
                    static_cast<unsigned long long>(seed + round), static_cast<int>(round % 3) + 1,
                    mindformers_native_isa());
      }
    }
  }
  for (const auto& [name, count] : rounds)
    std::printf("%-14s %6d rounds, %s\n", name.c_str(), count, mindformers_native_isa());
  return campaign::g_failures == 0 ? 0 : 1;
}

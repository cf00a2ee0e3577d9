// SPDX-License-Identifier: Apache-2.0
// Argument checks, the last error, and the time each operator took (for tuning).
#include "custom_op.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>

namespace mf {
namespace {

constexpr struct {
  const char* name;
  DType dtype;
} kTypes[] = {
    {"float32", DType::kFloat32}, {"bfloat16", DType::kBFloat16}, {"int8", DType::kInt8},
    {"int32", DType::kInt32},     {"int64", DType::kInt64},       {"bool", DType::kBool},
};

DType parse_dtype(const char* name) {
  for (const auto& type : kTypes) {
    if (std::strcmp(type.name, name) == 0) return type.dtype;
  }
  return DType::kOther;
}

const char* name_of(DType dtype) {
  for (const auto& type : kTypes) {
    if (type.dtype == dtype) return type.name;
  }
  return "another type";
}

struct Timing {
  double seconds = 0;
  int64_t calls = 0;
};

std::mutex g_mutex;  // guards the error text and the timings
std::string& last_error() {
  static std::string text;
  return text;
}
std::map<std::string, Timing>& timings() {
  static std::map<std::string, Timing> table;
  return table;
}
bool g_profile = false;
bool g_print = true;

}  // namespace

Arg::Arg(int index, void* data, int rank, const int64_t* shape, const char* dtype)
    : index_(index), data_(data), rank_(rank), shape_(shape), dtype_name_(dtype), dtype_(parse_dtype(dtype)) {}

int64_t Arg::dim(int axis) const {
  const int at = axis < 0 ? axis + rank_ : axis;
  require(at >= 0 && at < rank_,
          "argument " + std::to_string(index_) + " has no axis " + std::to_string(axis) + ": it is " + describe());
  return shape_[at];
}

int64_t Arg::size() const {
  int64_t product = 1;
  for (int i = 0; i < rank_; ++i) product *= shape_[i];
  return product;
}

std::string Arg::describe() const {
  std::string text = std::string(dtype_name_) + " (";
  for (int i = 0; i < rank_; ++i) text += (i ? ", " : "") + std::to_string(shape_[i]);
  return text + ")";
}

void Arg::check(const char* name, DType dtype, std::initializer_list<int64_t> shape) const {
  bool same = dtype == dtype_ && static_cast<int>(shape.size()) == rank_;
  int axis = 0;
  for (const int64_t size : shape) {
    same = same && (size == kAny ? shape_[axis] >= 0 : shape_[axis] == size);
    ++axis;
  }
  if (same && (data_ != nullptr || size() == 0)) return;
  std::string wanted = std::string(name_of(dtype)) + " (";
  axis = 0;
  for (const int64_t size : shape) wanted += (axis++ ? ", " : "") + (size == kAny ? "any" : std::to_string(size));
  throw OpError("argument " + std::to_string(index_) + " (" + name + ") must be " + wanted + "), got " + describe() +
                (data_ == nullptr ? " without memory" : ""));
}

void Args::require_count(int expected) const {
  require(count_ == expected,
          "takes " + std::to_string(expected) + " tensors (inputs and outputs), got " + std::to_string(count_));
}

Arg Args::operator[](int index) const {
  require(index >= 0 && index < count_, "has no argument " + std::to_string(index));
  return Arg(index, params_[index], ranks_[index], shapes_[index], dtypes_[index]);
}

int run_op(const char* name, OpBody body, const Args& args) noexcept {
  try {
    if (!g_profile) {
      body(args);
      return 0;
    }
    const auto start = std::chrono::steady_clock::now();
    body(args);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::lock_guard<std::mutex> lock(g_mutex);
    Timing& timing = timings()[name];
    timing.seconds += took.count();
    timing.calls += 1;
    return 0;
  } catch (const std::exception& error) {
    std::lock_guard<std::mutex> lock(g_mutex);
    last_error() = std::string(name) + ": " + error.what();
    if (g_print) std::fprintf(stderr, "mindformers native kernel %s\n", last_error().c_str());
  } catch (...) {
    std::lock_guard<std::mutex> lock(g_mutex);
    last_error() = std::string(name) + ": unknown error";
  }
  return 1;
}

}  // namespace mf

// The text of the last error, copied into `buffer`; returns its length.
MF_EXPORT int64_t mindformers_native_last_error(char* buffer, int64_t size) {
  std::lock_guard<std::mutex> lock(mf::g_mutex);
  std::snprintf(buffer, static_cast<size_t>(size), "%s", mf::last_error().c_str());
  return static_cast<int64_t>(mf::last_error().size());
}

// Whether (1) or not (0) errors are also printed on stderr, the default: MindSpore's own error names the operator only.
MF_EXPORT void mindformers_native_print_errors(int on) {
  std::lock_guard<std::mutex> lock(mf::g_mutex);
  mf::g_print = on != 0;
}

// Begin (1) or end (0) measuring operators; both clear what was measured.
MF_EXPORT void mindformers_native_profile(int on) {
  std::lock_guard<std::mutex> lock(mf::g_mutex);
  mf::g_profile = on != 0;
  mf::timings().clear();
}

// Lines "name calls seconds" of the operators since profiling began; returns the length of the text.
MF_EXPORT int64_t mindformers_native_timings(char* buffer, int64_t size) {
  std::lock_guard<std::mutex> lock(mf::g_mutex);
  std::string text;
  for (const auto& [name, timing] : mf::timings()) {
    text += name + " " + std::to_string(timing.calls) + " " + std::to_string(timing.seconds) + "\n";
  }
  std::snprintf(buffer, static_cast<size_t>(size), "%s", text.c_str());
  return static_cast<int64_t>(text.size());
}

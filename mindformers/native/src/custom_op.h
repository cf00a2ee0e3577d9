// SPDX-License-Identifier: Apache-2.0
// The C interface of MindSpore's ahead-of-time custom operators on CPU, and the checks every operator makes.
//
// MindSpore calls int Name(nparam, params, ndims, shapes, dtypes, stream, extra): pointers, ranks, shapes and dtype
// names of all inputs followed by all outputs. MF_OP(Name) { ... } defines such a function around a body that sees
// `args` and throws OpError on bad arguments; the text is kept for mindformers_native_last_error() and the function
// returns 1, which MindSpore turns into a RuntimeError.
#ifndef MINDFORMERS_NATIVE_CUSTOM_OP_H_
#define MINDFORMERS_NATIVE_CUSTOM_OP_H_

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#define MF_EXPORT extern "C" __attribute__((visibility("default")))

namespace mf {

class OpError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Storage types of the tensors a kernel may see. bfloat16 is the upper half of a float: see simd.h.
using bf16 = uint16_t;
enum class DType { kFloat32, kBFloat16, kInt8, kInt32, kInt64, kBool, kOther };

template <class T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct TypeOf<bf16> {
  static constexpr DType value = DType::kBFloat16;
};
template <>
struct TypeOf<int8_t> {
  static constexpr DType value = DType::kInt8;
};
template <>
struct TypeOf<int32_t> {
  static constexpr DType value = DType::kInt32;
};
template <>
struct TypeOf<int64_t> {
  static constexpr DType value = DType::kInt64;
};
template <>
struct TypeOf<bool> {
  static constexpr DType value = DType::kBool;
};

constexpr int64_t kAny = -1;

// One input or output of an operator.
class Arg {
 public:
  Arg(int index, void* data, int rank, const int64_t* shape, const char* dtype);

  int rank() const { return rank_; }
  DType dtype() const { return dtype_; }
  int64_t dim(int axis) const;  // negative axes count from the end
  int64_t size() const;         // number of elements

  // The data, once dtype and shape are what the caller names (kAny: every size). Throws OpError else.
  template <class T>
  T* as(const char* name, std::initializer_list<int64_t> shape) const {
    check(name, TypeOf<T>::value, shape);
    return static_cast<T*>(data_);
  }

  // Like as<float>() and so on for an argument of several possible types: checks the shape only.
  void* raw(const char* name, std::initializer_list<int64_t> shape) const {
    check(name, dtype_, shape);
    return data_;
  }

  std::string describe() const;  // "float32 (4, 8)"

 private:
  void check(const char* name, DType dtype, std::initializer_list<int64_t> shape) const;

  int index_;
  void* data_;
  int rank_;
  const int64_t* shape_;
  const char* dtype_name_;
  DType dtype_;
};

// All inputs and outputs of a call.
class Args {
 public:
  Args(int count, void** params, int* ranks, int64_t** shapes, const char** dtypes)
      : count_(count), params_(params), ranks_(ranks), shapes_(shapes), dtypes_(dtypes) {}

  int count() const { return count_; }
  void require_count(int expected) const;
  Arg operator[](int index) const;

 private:
  int count_;
  void** params_;
  int* ranks_;
  int64_t** shapes_;
  const char** dtypes_;
};

// Throws OpError with the text unless the condition holds.
inline void require(bool condition, const std::string& text) {
  if (!condition) throw OpError(text);
}

// Shapes of the inputs while a graph is compiled; a size not known yet is -1.
class Shapes {
 public:
  Shapes(const int* ranks, int64_t** shapes) : ranks_(ranks), shapes_(shapes) {}
  std::vector<int64_t> of(int input) const {
    return std::vector<int64_t>(shapes_[input], shapes_[input] + ranks_[input]);
  }
  // -1 for an axis the input does not have: the operator itself then refuses it by name.
  int64_t dim(int input, int axis) const { return axis < ranks_[input] ? shapes_[input][axis] : -1; }

 private:
  const int* ranks_;
  int64_t** shapes_;
};

using OpBody = void (*)(const Args&);
int run_op(const char* name, OpBody body, const Args& args) noexcept;

}  // namespace mf

#define MF_OP(name)                                                                                               \
  static void name##Body(const mf::Args& args);                                                                   \
  MF_EXPORT int name(int count, void** params, int* ranks, int64_t** shapes, const char** dtypes, void*, void*) { \
    return mf::run_op(#name, name##Body, mf::Args(count, params, ranks, shapes, dtypes));                         \
  }                                                                                                               \
  static void name##Body([[maybe_unused]] const mf::Args& args)

// MF_OP_SHAPE(Name) { return shapes.of(0); }: shape of the one output, which lets the operator run in graphs whose
// sizes are unknown until they run. MindSpore looks the function up by its name, NameInferShape.
#define MF_OP_SHAPE(name)                                                                \
  static std::vector<int64_t> name##Shape(const mf::Shapes& shapes);                     \
  MF_EXPORT std::vector<int64_t> name##InferShape(int* ranks, int64_t** inputs, void*) { \
    return name##Shape(mf::Shapes(ranks, inputs));                                       \
  }                                                                                      \
  static std::vector<int64_t> name##Shape(const mf::Shapes& shapes)

#endif  // MINDFORMERS_NATIVE_CUSTOM_OP_H_

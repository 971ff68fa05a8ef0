// What every tensor argument of every operator must be before a kernel reads its memory. The operators are registered
// through checked<>, which finds the tensors by their type: a new argument cannot pass by.
#pragma once

#include <string_view>

#include "tensors.h"

namespace leakypar {

// The name of an argument, read where it stands in the schema: "...(Tensor x, Tensor? y, ...". An error alone asks.
inline std::string argument_name(std::string_view schema, std::size_t index) {
  std::size_t begin = schema.find('(') + 1;
  for (; index > 0; --index) begin = schema.find(',', begin) + 1;
  const std::string_view argument = schema.substr(begin, schema.find_first_of(",)", begin) - begin);
  return std::string(argument.substr(argument.rfind(' ') + 1));
}

inline void check_floating(const Tensor& tensor, std::string_view schema, std::size_t index) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return;
    default:
      // The arguments of another type, which the operator checks.
      if (const std::string name = argument_name(schema, index);
          name != "seed" && name != "lengths" && name != "event_bits") {
        parameter_dtype(tensor, name.c_str());
      }
  }
}

// A tensor of floating point values, the lengths, the seed or bits, all in memory, on the device of `like`. What an argument
// is besides, its shape and type among these, the operator knows.
inline void check_memory(const Tensor& tensor, const Tensor& like, std::string_view schema, std::size_t index) {
  STD_TORCH_CHECK(tensor.defined(), "leakypar: ", argument_name(schema, index), " is None, expected a tensor");
  std::int32_t layout = 0;
  LEAKYPAR_TORCH(aoti_torch_get_layout(tensor.get(), &layout));
  STD_TORCH_CHECK(layout == aoti_torch_layout_strided(), "leakypar: ", argument_name(schema, index),
                  " is sparse or of another layout, expected a dense tensor");
  STD_TORCH_CHECK(tensor.device() == like.device(), "leakypar: ", argument_name(schema, index),
                  " is on another device than the input");
  check_floating(tensor, schema, index);
  if (tensor.numel() == 0) return;
  std::int64_t elements = tensor.storage_offset() + 1;
  for (std::int64_t i = 0; i < tensor.dim(); ++i) elements += (tensor.size(i) - 1) * tensor.stride(i);
  std::int64_t bytes = 0;
  LEAKYPAR_TORCH(aoti_torch_get_storage_size(tensor.get(), &bytes));
  const auto needed = elements * static_cast<std::int64_t>(tensor.element_size());
  STD_TORCH_CHECK(needed <= bytes, "leakypar: ", argument_name(schema, index), " has a storage of ", bytes,
                  " bytes, its shape ", shape(tensor), " needs ", needed);
}

template <typename Argument>
const Tensor* tensor_of(const Argument& argument) {
  if constexpr (std::is_same_v<Argument, Tensor>) return &argument;
  if constexpr (std::is_same_v<Argument, MaybeTensor>) return argument ? &*argument : nullptr;
  return nullptr;
}

// checked<operator, schema>::call is the operator with this check before it.
template <auto operation, const char* schema, typename Signature = decltype(operation)>
struct checked;

template <auto operation, const char* schema, typename Result, typename... Arguments>
struct checked<operation, schema, Result (*)(Arguments...)> {
  static Result call(Arguments... arguments) {
    const std::array<const Tensor*, sizeof...(Arguments)> tensors = {tensor_of(arguments)...};
    const Tensor* like = nullptr;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i] == nullptr) continue;
      if (like == nullptr) like = tensors[i];
      check_memory(*tensors[i], *like, schema, i);
    }
    return operation(std::move(arguments)...);
  }
};

}  // namespace leakypar

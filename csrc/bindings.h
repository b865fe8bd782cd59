// What the bindings of the CPU and of the CUDA operations share: addresses as Python passes them, made into arguments.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "fedsynsam.h"

namespace fedsynsam::bindings {

#ifdef FEDSYNSAM_CUDA
void bind_cuda(pybind11::module_& m);  // bindings_cuda.cpp
#endif

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Addresses = std::vector<uintptr_t>;

inline SamDirection sam_direction(uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive) {
  return {pointer<void>(gradient),  pointer<void>(synthetic),       static_cast<Dtype>(dtype),
          static_cast<float>(beta), static_cast<float>(1.0 - beta), adaptive};
}

inline SamStep sam_step_arguments(uintptr_t weights, uintptr_t gradient, int dtype, uintptr_t correction,
                                  uintptr_t momentum_buffer, double lr, double weight_decay, double momentum) {
  return {pointer<float>(weights),          pointer<void>(gradient),         static_cast<Dtype>(dtype),
          pointer<float>(correction),       pointer<float>(momentum_buffer), static_cast<float>(lr),
          static_cast<float>(weight_decay), static_cast<float>(momentum)};
}

}  // namespace fedsynsam::bindings

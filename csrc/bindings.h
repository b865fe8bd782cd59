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

inline TopKArguments topk_arguments(uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n,
                                    uintptr_t indices, uintptr_t values, uintptr_t new_residual, uintptr_t nonfinite,
                                    int threads) {
  return {pointer<void>(update),
          static_cast<Dtype>(dtype),
          pointer<float>(residual),
          rows,
          n,
          pointer<int32_t>(indices),
          pointer<float>(values),
          pointer<float>(new_residual),
          pointer<bool>(nonfinite),
          threads};
}

inline QuantizeArgs quantize_arguments(uintptr_t update, int dtype, uintptr_t residual, uintptr_t seeds, int64_t rows,
                                       int64_t n, int bits, int64_t bucket, int norm, int rounding, uintptr_t codes,
                                       uintptr_t scales, uintptr_t new_residual, uintptr_t nonfinite) {
  return {pointer<void>(update),
          static_cast<Dtype>(dtype),
          pointer<float>(residual),
          pointer<int64_t>(seeds),
          rows,
          n,
          {bits, bucket},
          static_cast<Norm>(norm),
          static_cast<Rounding>(rounding),
          pointer<uint8_t>(codes),
          pointer<float>(scales),
          pointer<float>(new_residual),
          pointer<bool>(nonfinite)};
}

inline std::vector<SparsePayload> sparse_payloads(const Addresses& indices, const Addresses& values,
                                                  const std::vector<int64_t>& counts) {
  std::vector<SparsePayload> payloads;
  for (size_t i = 0; i < counts.size(); ++i) {
    payloads.push_back({pointer<int32_t>(indices.at(i)), pointer<float>(values.at(i)), counts[i]});
  }
  return payloads;
}

inline std::vector<CodesPayload> codes_payloads(const Addresses& codes, const Addresses& scales) {
  std::vector<CodesPayload> payloads;
  for (size_t i = 0; i < codes.size(); ++i) {
    payloads.push_back({pointer<uint8_t>(codes[i]), pointer<float>(scales.at(i))});
  }
  return payloads;
}

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

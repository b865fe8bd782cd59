// The Python face of the C++ and CUDA operations: raw pointers, sizes and a stream in; nothing else.
// Shapes, dtypes and devices are checked in fedsynsam/ops before a pointer gets here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fedsynsam.h"

namespace py = pybind11;

// --- quantize, aggregate ---
namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Addresses = std::vector<uintptr_t>;

void bind_quantize(py::module_& m) {
  using namespace fedsynsam;
  m.def(
      "quantize_cpu",
      [](uintptr_t update, int dtype, uintptr_t residual, uintptr_t seeds, int64_t rows, int64_t n, int bits,
         int64_t bucket, int norm, int rounding, uintptr_t codes, uintptr_t scales, uintptr_t new_residual,
         uintptr_t nonfinite, int threads) {
        quantize_cpu({pointer<void>(update), static_cast<Dtype>(dtype), pointer<float>(residual),
                      pointer<int64_t>(seeds), rows, n, {bits, bucket}, static_cast<Norm>(norm),
                      static_cast<Rounding>(rounding), pointer<uint8_t>(codes), pointer<float>(scales),
                      pointer<float>(new_residual), pointer<bool>(nonfinite)},
                     threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "dequantize_cpu",
      [](uintptr_t codes, uintptr_t scales, int64_t rows, int64_t n, int bits, int64_t bucket, uintptr_t out,
         int threads) {
        dequantize_cpu(pointer<uint8_t>(codes), pointer<float>(scales), rows, n, {bits, bucket}, pointer<float>(out),
                       threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

void bind_aggregate(py::module_& m) {
  using namespace fedsynsam;
  m.def(
      "aggregate_sparse_cpu",
      [](const Addresses& indices, const Addresses& values, const std::vector<int64_t>& counts, uintptr_t weights,
         int64_t n, bool accumulate, uintptr_t out, int threads) {
        std::vector<SparsePayload> payloads;
        for (size_t i = 0; i < counts.size(); ++i) {
          payloads.push_back({pointer<int32_t>(indices.at(i)), pointer<float>(values.at(i)), counts[i]});
        }
        aggregate_sparse_cpu(payloads.data(), pointer<float>(weights), static_cast<int64_t>(payloads.size()), n,
                             accumulate, pointer<float>(out), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "aggregate_codes_cpu",
      [](const Addresses& codes, const Addresses& scales, uintptr_t weights, int64_t n, int bits, int64_t bucket,
         bool accumulate, uintptr_t out, int threads) {
        std::vector<CodesPayload> payloads;
        for (size_t i = 0; i < codes.size(); ++i) {
          payloads.push_back({pointer<uint8_t>(codes[i]), pointer<float>(scales.at(i))});
        }
        aggregate_codes_cpu(payloads.data(), pointer<float>(weights), static_cast<int64_t>(payloads.size()), n,
                            {bits, bucket}, accumulate, pointer<float>(out), threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

// --- sam: helpers ---
namespace {

fedsynsam::SamDirection sam_direction(uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive) {
  return {reinterpret_cast<const void*>(gradient), reinterpret_cast<const void*>(synthetic),
          static_cast<fedsynsam::Dtype>(dtype), static_cast<float>(beta), static_cast<float>(1.0 - beta), adaptive};
}

void sam_norm_cpu(uintptr_t weights, uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive,
                  int64_t rows, int64_t n, uintptr_t norm, int threads) {
  fedsynsam::sam_norm_cpu(reinterpret_cast<const float*>(weights),
                          sam_direction(gradient, synthetic, dtype, beta, adaptive), rows, n,
                          reinterpret_cast<float*>(norm), threads);
}

void sam_perturb_cpu(uintptr_t weights, uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive,
                     int64_t rows, int64_t n, double rho, uintptr_t norm, uintptr_t out, int threads) {
  fedsynsam::sam_perturb_cpu(reinterpret_cast<const float*>(weights),
                             sam_direction(gradient, synthetic, dtype, beta, adaptive), rows, n,
                             static_cast<float>(rho), reinterpret_cast<const float*>(norm),
                             reinterpret_cast<float*>(out), threads);
}

fedsynsam::SamStep sam_step_arguments(uintptr_t weights, uintptr_t gradient, int dtype, uintptr_t correction,
                                      uintptr_t momentum_buffer, double lr, double weight_decay, double momentum) {
  return {reinterpret_cast<float*>(weights),          reinterpret_cast<const void*>(gradient),
          static_cast<fedsynsam::Dtype>(dtype),       reinterpret_cast<const float*>(correction),
          reinterpret_cast<float*>(momentum_buffer),  static_cast<float>(lr),
          static_cast<float>(weight_decay),           static_cast<float>(momentum)};
}

void sam_step_cpu(uintptr_t weights, uintptr_t gradient, int dtype, uintptr_t correction, uintptr_t momentum_buffer,
                  double lr, double weight_decay, double momentum, int64_t rows, int64_t n, int threads) {
  fedsynsam::sam_step_cpu(
      sam_step_arguments(weights, gradient, dtype, correction, momentum_buffer, lr, weight_decay, momentum), rows, n,
      threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fedsynsam: compiled operations on raw pointers";
#ifdef FEDSYNSAM_CUDA
  m.attr("cuda_built") = true;
#else
  m.attr("cuda_built") = false;
#endif
  // Every binding releases the GIL: pointers stay valid because the caller holds the tensors.
  // --- topk, index_coding ---
  // --- quantize, aggregate ---
  bind_quantize(m);
  bind_aggregate(m);
  // --- sam ---
  m.def("sam_norm_cpu", &sam_norm_cpu, py::call_guard<py::gil_scoped_release>());
  m.def("sam_perturb_cpu", &sam_perturb_cpu, py::call_guard<py::gil_scoped_release>());
  m.def("sam_step_cpu", &sam_step_cpu, py::call_guard<py::gil_scoped_release>());
}

// The Python face of the C++ and CUDA operations: raw pointers, sizes and a stream in; nothing else.
// Shapes, dtypes and devices are checked in fedsynsam/ops before a pointer gets here.
#include "bindings.h"

#include "cpu/large_output.h"

namespace py = pybind11;
using namespace fedsynsam::bindings;

// --- quantize, aggregate ---
namespace {

void bind_quantize(py::module_& m) {
  using namespace fedsynsam;
  m.def(
      "quantize_cpu",
      [](uintptr_t update, int dtype, uintptr_t residual, uintptr_t seeds, int64_t rows, int64_t n, int bits,
         int64_t bucket, int norm, int rounding, uintptr_t codes, uintptr_t scales, uintptr_t new_residual,
         uintptr_t nonfinite, int threads) {
        quantize_cpu(quantize_arguments(update, dtype, residual, seeds, rows, n, bits, bucket, norm, rounding, codes,
                                        scales, new_residual, nonfinite),
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
        const auto payloads = sparse_payloads(indices, values, counts);
        aggregate_sparse_cpu(payloads.data(), pointer<float>(weights), static_cast<int64_t>(payloads.size()), n,
                             accumulate, pointer<float>(out), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "aggregate_codes_cpu",
      [](const Addresses& codes, const Addresses& scales, uintptr_t weights, int64_t n, int bits, int64_t bucket,
         bool accumulate, uintptr_t out, int threads) {
        const auto payloads = codes_payloads(codes, scales);
        aggregate_codes_cpu(payloads.data(), pointer<float>(weights), static_cast<int64_t>(payloads.size()), n,
                            {bits, bucket}, accumulate, pointer<float>(out), threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

// --- topk, index_coding ---
namespace {

void bind_topk(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "topk_cpu",
      [](uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n, int64_t k, uintptr_t indices,
         uintptr_t values, uintptr_t new_residual, uintptr_t nonfinite, int threads) {
        fedsynsam::topk_cpu(
            topk_arguments(update, dtype, residual, rows, n, indices, values, new_residual, nonfinite, threads), k);
      },
      release());
  m.def(
      "chunk_topk_cpu",
      [](uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n, int64_t chunk, int64_t k_chunk,
         int64_t k_tail, uintptr_t indices, uintptr_t values, uintptr_t new_residual, uintptr_t nonfinite,
         int threads) {
        fedsynsam::chunk_topk_cpu(
            topk_arguments(update, dtype, residual, rows, n, indices, values, new_residual, nonfinite, threads), chunk,
            k_chunk, k_tail);
      },
      release());
  m.def("topk_instruction_sets", &fedsynsam::topk_instruction_sets,
        "Names of the instruction sets that topk_cpu can use here, best first");
  m.def("topk_select_instruction_set", &fedsynsam::topk_select_instruction_set,
        "Make topk_cpu use the named instruction set in this process; False if it cannot");
  m.def(
      "encode_indices_cpu",
      [](uintptr_t indices, int64_t rows, int64_t k, int64_t n, uintptr_t words, int threads) {
        fedsynsam::encode_indices_cpu(pointer<const int32_t>(indices), rows, k, n, pointer<uint32_t>(words), threads);
      },
      release());
  m.def(
      "decode_indices_cpu",
      [](uintptr_t words, int64_t rows, int64_t n, int64_t k, uintptr_t indices, uintptr_t valid, int threads) {
        fedsynsam::decode_indices_cpu(pointer<const uint32_t>(words), rows, n, k, pointer<int32_t>(indices),
                                      pointer<bool>(valid), threads);
      },
      release());
}

}  // namespace

// --- sam ---
namespace {

void bind_sam(py::module_& m) {
  m.def(
      "sam_norm_cpu",
      [](uintptr_t weights, uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive,
         int64_t rows, int64_t n, uintptr_t norm, int threads) {
        fedsynsam::sam_norm_cpu(pointer<float>(weights), sam_direction(gradient, synthetic, dtype, beta, adaptive),
                                rows, n, pointer<float>(norm), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "sam_perturb_cpu",
      [](uintptr_t weights, uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive,
         int64_t rows, int64_t n, double rho, uintptr_t norm, uintptr_t out, int threads) {
        fedsynsam::sam_perturb_cpu(pointer<float>(weights), sam_direction(gradient, synthetic, dtype, beta, adaptive),
                                   rows, n, static_cast<float>(rho), pointer<float>(norm), pointer<float>(out),
                                   threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "sam_step_cpu",
      [](uintptr_t weights, uintptr_t gradient, int dtype, uintptr_t correction, uintptr_t momentum_buffer, double lr,
         double weight_decay, double momentum, int64_t rows, int64_t n, int threads) {
        fedsynsam::sam_step_cpu(
            sam_step_arguments(weights, gradient, dtype, correction, momentum_buffer, lr, weight_decay, momentum), rows,
            n, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fedsynsam: compiled operations on raw pointers";
#ifdef FEDSYNSAM_CUDA
  m.attr("cuda_built") = true;
#else
  m.attr("cuda_built") = false;
#endif
  m.def("prefer_huge_pages",
        [](uintptr_t address, int64_t bytes) { fedsynsam::prefer_huge_pages(pointer<void>(address), bytes); });
  // Every other binding releases the GIL: pointers stay valid because the caller holds the tensors.
  // --- topk, index_coding ---
  bind_topk(m);
  // --- quantize, aggregate ---
  bind_quantize(m);
  bind_aggregate(m);
  // --- sam ---
  bind_sam(m);
#ifdef FEDSYNSAM_CUDA
  bind_cuda(m);
#endif
}

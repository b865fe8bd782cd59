// The Python face of the CUDA operations: each launch returns 0 or a code for `cuda_error`. Empty without CUDA.
#ifdef FEDSYNSAM_CUDA
#include "bindings.h"

namespace py = pybind11;

namespace fedsynsam::bindings {
namespace {

void bind_index_coding(py::module_& m) {
  m.def("decode_indices_cuda_counts", &fedsynsam::decode_indices_cuda_counts);
  m.def(
      "encode_indices_cuda",
      [](uintptr_t indices, int64_t rows, int64_t k, int64_t n, uintptr_t words, uintptr_t stream) {
        return fedsynsam::encode_indices_cuda(pointer<int32_t>(indices), rows, k, n, pointer<uint32_t>(words),
                                              pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "decode_indices_cuda",
      [](uintptr_t words, int64_t rows, int64_t n, int64_t k, uintptr_t counts, uintptr_t indices, uintptr_t valid,
         uintptr_t stream) {
        return fedsynsam::decode_indices_cuda(pointer<uint32_t>(words), rows, n, k, pointer<uint32_t>(counts),
                                              pointer<int32_t>(indices), pointer<bool>(valid), pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
}

void bind_topk(py::module_& m) {
  m.def("topk_cuda_scratch", &fedsynsam::topk_cuda_scratch);
  m.def(
      "topk_cuda",
      [](uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n, int64_t k, uintptr_t indices,
         uintptr_t values, uintptr_t new_residual, uintptr_t nonfinite, uintptr_t scratch, uintptr_t stream) {
        return fedsynsam::topk_cuda(
            topk_arguments(update, dtype, residual, rows, n, indices, values, new_residual, nonfinite, 0), k,
            pointer<uint32_t>(scratch), pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "chunk_topk_cuda",
      [](uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n, int64_t chunk, int64_t k_chunk,
         int64_t k_tail, uintptr_t indices, uintptr_t values, uintptr_t new_residual, uintptr_t nonfinite,
         uintptr_t scratch, uintptr_t stream) {
        return fedsynsam::chunk_topk_cuda(
            topk_arguments(update, dtype, residual, rows, n, indices, values, new_residual, nonfinite, 0), chunk,
            k_chunk, k_tail, pointer<uint32_t>(scratch), pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
}

void bind_quantize(py::module_& m) {
  m.def(
      "quantize_cuda",
      [](uintptr_t update, int dtype, uintptr_t residual, uintptr_t seeds, int64_t rows, int64_t n, int bits,
         int64_t bucket, int norm, int rounding, uintptr_t codes, uintptr_t scales, uintptr_t new_residual,
         uintptr_t nonfinite, uintptr_t stream) {
        return quantize_cuda(quantize_arguments(update, dtype, residual, seeds, rows, n, bits, bucket, norm, rounding,
                                                codes, scales, new_residual, nonfinite),
                             pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "dequantize_cuda",
      [](uintptr_t codes, uintptr_t scales, int64_t rows, int64_t n, int bits, int64_t bucket, uintptr_t out,
         uintptr_t stream) {
        return dequantize_cuda(pointer<uint8_t>(codes), pointer<float>(scales), rows, n, {bits, bucket},
                               pointer<float>(out), pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
}

void bind_aggregate(py::module_& m) {
  m.def(
      "aggregate_sparse_cuda",
      [](const Addresses& indices, const Addresses& values, const std::vector<int64_t>& counts, uintptr_t weights,
         int64_t n, bool accumulate, uintptr_t out, uintptr_t stream) {
        const auto payloads = sparse_payloads(indices, values, counts);
        return aggregate_sparse_cuda(payloads.data(), pointer<float>(weights), static_cast<int64_t>(payloads.size()), n,
                                     accumulate, pointer<float>(out), pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "aggregate_codes_cuda",
      [](const Addresses& codes, const Addresses& scales, uintptr_t weights, int64_t n, int bits, int64_t bucket,
         bool accumulate, uintptr_t out, uintptr_t stream) {
        const auto payloads = codes_payloads(codes, scales);
        return aggregate_codes_cuda(payloads.data(), pointer<float>(weights), static_cast<int64_t>(payloads.size()), n,
                                    {bits, bucket}, accumulate, pointer<float>(out), pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
}

void bind_sam(py::module_& m) {
  m.def("sam_cuda_partials", &fedsynsam::sam_cuda_partials);
  m.def(
      "sam_norm_cuda",
      [](uintptr_t weights, uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive,
         int64_t rows, int64_t n, uintptr_t partials, uintptr_t norm, uintptr_t stream) {
        return fedsynsam::sam_norm_cuda(pointer<float>(weights),
                                        sam_direction(gradient, synthetic, dtype, beta, adaptive), rows, n,
                                        pointer<double>(partials), pointer<float>(norm), pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "sam_perturb_cuda",
      [](uintptr_t weights, uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive,
         int64_t rows, int64_t n, double rho, uintptr_t norm, uintptr_t partials, uintptr_t out, uintptr_t stream) {
        return fedsynsam::sam_perturb_cuda(pointer<float>(weights),
                                           sam_direction(gradient, synthetic, dtype, beta, adaptive), rows, n,
                                           static_cast<float>(rho), pointer<float>(norm), pointer<double>(partials),
                                           pointer<float>(out), pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "sam_step_cuda",
      [](uintptr_t weights, uintptr_t gradient, int dtype, uintptr_t correction, uintptr_t momentum_buffer, double lr,
         double weight_decay, double momentum, int64_t rows, int64_t n, uintptr_t stream) {
        return fedsynsam::sam_step_cuda(
            sam_step_arguments(weights, gradient, dtype, correction, momentum_buffer, lr, weight_decay, momentum), rows,
            n, pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_error", &cuda_error);
  bind_topk(m);
  bind_index_coding(m);
  bind_quantize(m);
  bind_aggregate(m);
  bind_sam(m);
}

}  // namespace fedsynsam::bindings
#endif

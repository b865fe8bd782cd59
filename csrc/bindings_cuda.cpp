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
  bind_index_coding(m);
  bind_sam(m);
}

}  // namespace fedsynsam::bindings
#endif

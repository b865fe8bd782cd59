// The Python face of the C++ and CUDA operations: raw pointers, sizes and a stream in; nothing else.
// Shapes, dtypes and devices are checked in fedsynsam/ops before a pointer gets here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fedsynsam.h"

namespace py = pybind11;

// --- topk, index_coding ---
namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

fedsynsam::TopKArguments topk_arguments(uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n,
                                        uintptr_t indices, uintptr_t values, uintptr_t new_residual,
                                        uintptr_t nonfinite, int threads) {
  return {pointer<const void>(update),  static_cast<fedsynsam::Dtype>(dtype),
          pointer<const float>(residual), rows, n, pointer<int32_t>(indices), pointer<float>(values),
          pointer<float>(new_residual), pointer<bool>(nonfinite), threads};
}

void bind_topk(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def("topk_cpu",
        [](uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n, int64_t k, uintptr_t indices,
           uintptr_t values, uintptr_t new_residual, uintptr_t nonfinite, int threads) {
          fedsynsam::topk_cpu(topk_arguments(update, dtype, residual, rows, n, indices, values, new_residual,
                                             nonfinite, threads), k);
        }, release());
  m.def("chunk_topk_cpu",
        [](uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n, int64_t chunk, int64_t k_chunk,
           int64_t k_tail, uintptr_t indices, uintptr_t values, uintptr_t new_residual, uintptr_t nonfinite,
           int threads) {
          fedsynsam::chunk_topk_cpu(topk_arguments(update, dtype, residual, rows, n, indices, values, new_residual,
                                                   nonfinite, threads), chunk, k_chunk, k_tail);
        }, release());
  m.def("topk_instruction_sets", &fedsynsam::topk_instruction_sets,
        "Names of the instruction sets that topk_cpu can use here, best first");
  m.def("topk_select_instruction_set", &fedsynsam::topk_select_instruction_set,
        "Make topk_cpu use the named instruction set in this process; False if it cannot");
  m.def("encode_indices_cpu",
        [](uintptr_t indices, int64_t rows, int64_t k, int64_t n, uintptr_t words, int threads) {
          fedsynsam::encode_indices_cpu(pointer<const int32_t>(indices), rows, k, n, pointer<uint32_t>(words), threads);
        }, release());
  m.def("decode_indices_cpu",
        [](uintptr_t words, int64_t rows, int64_t n, int64_t k, uintptr_t indices, uintptr_t valid, int threads) {
          fedsynsam::decode_indices_cpu(pointer<const uint32_t>(words), rows, n, k, pointer<int32_t>(indices),
                                        pointer<bool>(valid), threads);
        }, release());
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
  bind_topk(m);
  // --- quantize, aggregate ---
  // --- sam ---
}

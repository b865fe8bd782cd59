// The Python face of the C++ and CUDA operations: raw pointers, sizes and a stream in; nothing else.
// Shapes, dtypes and devices are checked in fedsynsam/ops before a pointer gets here.
#include <pybind11/pybind11.h>

#include "fedsynsam.h"

namespace py = pybind11;

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
  // --- sam ---
}

// The module `emulated`: the CUDA operations of fedsynsam._C, run by csrc/emulation on the CPU.
#include "bindings.h"
#include "emulation/cuda.h"

PYBIND11_MODULE(emulated, m) {
  fedsynsam::bindings::bind_cuda(m);
  m.def("set_seed", &fedsynsam::emulation::set_seed, "Draw the order of blocks and threads anew");
}

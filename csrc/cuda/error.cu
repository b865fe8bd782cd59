// What the codes that launchers return mean.
#include "fedsynsam.h"
#include "launch.h"

namespace fedsynsam {

const char* cuda_error(int code) {
  if (code == kGridTooLarge) return "more than 2^31 - 1 thread blocks are needed; split the batch of rows";
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

}  // namespace fedsynsam

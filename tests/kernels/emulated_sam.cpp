// The launchers of csrc/cuda/sam.cu with a C face, for ctypes; compiled with FEDSYNSAM_EMULATION.
#include "cuda/sam.cu"

using namespace fedsynsam;

extern "C" {

int64_t partials(int64_t n) { return sam_cuda_partials(n); }

int norm(const float* weights, const void* gradient, const void* synthetic, int dtype, double beta, int adaptive,
         int64_t rows, int64_t n, double* scratch, float* out) {
  const SamDirection from{gradient, synthetic, static_cast<Dtype>(dtype), static_cast<float>(beta),
                          static_cast<float>(1.0 - beta), adaptive != 0};
  return sam_norm_cuda(weights, from, rows, n, scratch, out, nullptr);
}

int perturb(const float* weights, const void* gradient, const void* synthetic, int dtype, double beta, int adaptive,
            int64_t rows, int64_t n, double rho, const float* norms, double* scratch, float* out) {
  const SamDirection from{gradient, synthetic, static_cast<Dtype>(dtype), static_cast<float>(beta),
                          static_cast<float>(1.0 - beta), adaptive != 0};
  return sam_perturb_cuda(weights, from, rows, n, static_cast<float>(rho), norms, scratch, out, nullptr);
}

int step(float* weights, const void* gradient, int dtype, const float* correction, float* momentum_buffer, double lr,
         double weight_decay, double momentum, int64_t rows, int64_t n) {
  const SamStep arguments{weights, gradient, static_cast<Dtype>(dtype), correction, momentum_buffer,
                          static_cast<float>(lr), static_cast<float>(weight_decay), static_cast<float>(momentum)};
  return sam_step_cuda(arguments, rows, n, nullptr);
}
}

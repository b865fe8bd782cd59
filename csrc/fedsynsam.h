// Declarations of the compiled operations, grouped by operation. Pointers are uintptr_t at the Python border
// (see bindings.cpp) and typed here. Every function is row-batched: `rows` rows of `n` contiguous elements.
#pragma once

#include <cstdint>

namespace fedsynsam {

// Element types of an update; anything that reaches the wire is float32.
enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

// --- topk, index_coding ---
// --- quantize, aggregate ---
// --- sam ---
// Where the perturbation comes from: the gradient, or beta * synthetic + keep * gradient (synthetic not null).
struct SamDirection {
  const void* gradient;
  const void* synthetic;  // of the gradient's dtype, or null
  Dtype dtype;
  float beta;
  float keep;  // 1 - beta, rounded once from float64
  bool adaptive;
};

// One step in place: u = g + weight_decay * w [+ correction]; [buffer = momentum * buffer + u, u = buffer]; w -= lr * u.
struct SamStep {
  float* weights;
  const void* gradient;
  Dtype dtype;
  const float* correction;  // or null
  float* momentum_buffer;   // or null: no momentum
  float lr;
  float weight_decay;
  float momentum;
};

void sam_norm_cpu(const float* weights, const SamDirection& from, int64_t rows, int64_t n, float* norm, int threads);
// `norm` may be null: it is computed here then.
void sam_perturb_cpu(const float* weights, const SamDirection& from, int64_t rows, int64_t n, float rho,
                     const float* norm, float* out, int threads);
void sam_step_cpu(const SamStep& arguments, int64_t rows, int64_t n, int threads);

}  // namespace fedsynsam

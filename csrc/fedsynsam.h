// Declarations of the compiled operations, grouped by operation. Pointers are uintptr_t at the Python border
// (see bindings.cpp) and typed here. Every function is row-batched: `rows` rows of `n` contiguous elements.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fedsynsam {

// Element types of an update; anything that reaches the wire is float32.
enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

// --- topk, index_coding ---
// Rows [rows, n] of `dtype` and, unless null, of the residual in; kernels/reference/topk.py says what comes out.
struct TopKArguments {
  const void* update;
  Dtype dtype;
  const float* residual;
  int64_t rows, n;
  int32_t* indices;     // [rows, k]
  float* values;        // [rows, k]
  float* new_residual;  // [rows, n], overlapping no input
  bool* nonfinite;      // [rows]
  int threads;
};
void topk_cpu(const TopKArguments& args, int64_t k);
void chunk_topk_cpu(const TopKArguments& args, int64_t chunk, int64_t k_chunk, int64_t k_tail);

// The instruction sets that these two can use here, best first; and, for tests and benchmarks, the choice of one in
// this process (false if it is not among them). Their results are the same.
std::vector<std::string> topk_instruction_sets();
bool topk_select_instruction_set(const std::string& name);

void encode_indices_cpu(const int32_t* indices, int64_t rows, int64_t k, int64_t n, uint32_t* words, int threads);
void decode_indices_cpu(const uint32_t* words, int64_t rows, int64_t n, int64_t k, int32_t* indices, bool* valid,
                        int threads);

// --- quantize, aggregate ---
// --- sam ---

}  // namespace fedsynsam

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

}  // namespace fedsynsam

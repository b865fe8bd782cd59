// topk and chunk_topk on the CPU: see kernels/reference/topk.py for the contract.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "fedsynsam.h"
#include "numerics/topk.h"

namespace fedsynsam {
namespace {

float load(const TopKArguments& args, int64_t i) {
  switch (args.dtype) {
    case Dtype::bf16: return topk::bf16_to_float(static_cast<const uint16_t*>(args.update)[i]);
    case Dtype::f16: return topk::f16_to_float(static_cast<const uint16_t*>(args.update)[i]);
    default: return static_cast<const float*>(args.update)[i];
  }
}

void emit(const TopKArguments& args, int64_t row, int64_t begin, int64_t len, int64_t k, int64_t out) {
  float* a = args.new_residual + row * args.n + begin;
  std::vector<int32_t> order(static_cast<size_t>(len));
  for (int64_t i = 0; i < len; ++i) order[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  std::nth_element(order.begin(), order.begin() + k, order.end(), [a](int32_t x, int32_t y) {
    const uint32_t kx = topk::key_of(a[x]), ky = topk::key_of(a[y]);
    return kx > ky || (kx == ky && x < y);
  });
  std::sort(order.begin(), order.begin() + k);
  for (int64_t j = 0; j < k; ++j) {
    const int32_t i = order[static_cast<size_t>(j)];
    args.indices[out + j] = static_cast<int32_t>(begin + i);
    args.values[out + j] = a[i];
    a[i] = 0.0f;
  }
}

void row_topk(const TopKArguments& args, int64_t row, int64_t chunk, int64_t k_chunk, int64_t k_tail) {
  const int64_t full = args.n / chunk, k = full * k_chunk + k_tail, base = row * args.n;
  bool bad = false;
  for (int64_t i = 0; i < args.n; ++i) {
    float a = load(args, base + i);
    if (args.residual) a += args.residual[base + i];
    bad |= topk::key_of(a) >= topk::kInfinity;
    args.new_residual[base + i] = a;
  }
  args.nonfinite[row] = bad;
  if (bad) {
    for (int64_t i = 0; i < args.n; ++i) args.new_residual[base + i] = args.residual ? args.residual[base + i] : 0.0f;
    for (int64_t j = 0; j < k; ++j) {
      args.indices[row * k + j] = static_cast<int32_t>(j);
      args.values[row * k + j] = 0.0f;
    }
    return;
  }
  for (int64_t c = 0; c < full; ++c) emit(args, row, c * chunk, chunk, k_chunk, row * k + c * k_chunk);
  emit(args, row, full * chunk, args.n - full * chunk, k_tail, row * k + full * k_chunk);
}

}  // namespace

void topk_cpu(const TopKArguments& args, int64_t k) {
  for (int64_t row = 0; row < args.rows; ++row) row_topk(args, row, args.n + 1, 0, k);
}

void chunk_topk_cpu(const TopKArguments& args, int64_t chunk, int64_t k_chunk, int64_t k_tail) {
  for (int64_t row = 0; row < args.rows; ++row) row_topk(args, row, chunk, k_chunk, k_tail);
}

}  // namespace fedsynsam

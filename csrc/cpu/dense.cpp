// Dense layers, for few images and few units: a library's matrix product would first have to lay blocks out anew.
#include "cpu/dense.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "cpu/tiles.h"

namespace fedsynsam {
namespace {

// y [units, lane] = or += W x (+ bias), W being the weight [outputs, inputs] or its transpose.
struct Product {
  const Dense& layer;
  const float* x;
  const float* weight;
  const float* bias;  // or null
  bool add;
  float* y;
};

template <typename Isa, int kUnits, bool kTransposed>
FSS_INLINE void product_units(const Product& p, int64_t unit) {
  using V = typename Vector<Isa::kWidth>::type;
  const int64_t inputs = p.layer.inputs, terms = kTransposed ? p.layer.outputs : inputs;
  const int64_t unit_step = kTransposed ? 1 : inputs, term_step = kTransposed ? inputs : 1;
  for (int part = 0; part < kLanes; part += Isa::kWidth) {
    const float* w = p.weight + unit * unit_step;
    V sum[kUnits];
    FSS_UNROLL for (int u = 0; u < kUnits; ++u) sum[u] = p.bias ? V{} + p.bias[unit + u] : V{};
    for (int64_t t = 0; t < terms; ++t, w += term_step) {
      const V x = *reinterpret_cast<const V*>(p.x + t * kLanes + part);
      FSS_UNROLL for (int u = 0; u < kUnits; ++u) sum[u] += x * w[u * unit_step];
    }
    FSS_UNROLL for (int u = 0; u < kUnits; ++u) {
      auto* y = reinterpret_cast<V*>(p.y + (unit + u) * kLanes + part);
      *y = p.add ? *y + sum[u] : sum[u];
    }
  }
}

template <typename Isa, bool kTransposed>
FSS_INLINE void product_all(const Product& p) {
  const int64_t units = kTransposed ? p.layer.inputs : p.layer.outputs, even = units / Isa::kUnits * Isa::kUnits;
  for (int64_t u = 0; u < even; u += Isa::kUnits) product_units<Isa, Isa::kUnits, kTransposed>(p, u);
  for (int64_t u = even; u < units; ++u) product_units<Isa, 1, kTransposed>(p, u);
}

template <typename Isa>
FSS_INLINE void product_plain(const Product& p) {
  product_all<Isa, false>(p);
}

template <typename Isa>
FSS_INLINE void product_transposed(const Product& p) {
  product_all<Isa, true>(p);
}

struct WeightGradient {
  const Dense& layer;
  const float* x;     // images [lane, inputs]
  const float* grad;  // [lane, outputs]
  float* out;         // added to
};

// kTaps rows by kVectors vectors of weights, from (row, column) on; here a vector is as many inputs, not images.
template <typename Isa, int kTaps, int kVectors>
FSS_INLINE void weight_tile(const WeightGradient& b, int64_t row, int64_t column) {
  using V = typename Vector<Isa::kWidth>::type;
  const int64_t inputs = b.layer.inputs, outputs = b.layer.outputs;
  V sum[kTaps][kVectors];
  FSS_UNROLL for (int t = 0; t < kTaps; ++t) { FSS_UNROLL for (int v = 0; v < kVectors; ++v) sum[t][v] = V{}; }
  for (int l = 0; l < kLanes; ++l) {
    const float* x = b.x + l * inputs + column;
    const float* g = b.grad + l * outputs + row;
    FSS_UNROLL for (int v = 0; v < kVectors; ++v) {
      V units;
      std::memcpy(&units, x + v * Isa::kWidth, sizeof(V));  // of any address
      FSS_UNROLL for (int t = 0; t < kTaps; ++t) sum[t][v] += units * g[t];
    }
  }
  FSS_UNROLL for (int t = 0; t < kTaps; ++t) {
    FSS_UNROLL for (int v = 0; v < kVectors; ++v) {
      float* target = b.out + (row + t) * inputs + column + v * Isa::kWidth;
      V old;
      std::memcpy(&old, target, sizeof(V));
      old += sum[t][v];
      std::memcpy(target, &old, sizeof(V));
    }
  }
}

template <typename Isa, int kTaps>
FSS_INLINE void weight_rows(const WeightGradient& b, int64_t row) {
  constexpr int kVectors = 4;
  const int64_t inputs = b.layer.inputs, outputs = b.layer.outputs;
  int64_t column = 0;
  for (; column + kVectors * Isa::kWidth <= inputs; column += kVectors * Isa::kWidth) {
    weight_tile<Isa, kTaps, kVectors>(b, row, column);
  }
  for (; column + Isa::kWidth <= inputs; column += Isa::kWidth) weight_tile<Isa, kTaps, 1>(b, row, column);
  for (; column < inputs; ++column) {
    for (int t = 0; t < kTaps; ++t) {
      float sum = 0.0f;
      for (int l = 0; l < kLanes; ++l) sum += b.x[l * inputs + column] * b.grad[l * outputs + row + t];
      b.out[(row + t) * inputs + column] += sum;
    }
  }
}

template <typename Isa>
FSS_INLINE void weight_all(const WeightGradient& b) {
  const int64_t outputs = b.layer.outputs, even = outputs / Isa::kTaps * Isa::kTaps;
  for (int64_t row = 0; row < even; row += Isa::kTaps) weight_rows<Isa, Isa::kTaps>(b, row);
  for (int64_t row = even; row < outputs; ++row) weight_rows<Isa, 1>(b, row);
}

FSS_FOR_EACH_ISA(product, Product, product_plain)
FSS_FOR_EACH_ISA(transposed_product, Product, product_transposed)
FSS_FOR_EACH_ISA(weight_gradient, WeightGradient, weight_all)

// [units, lane] as [lane, units].
void transpose(const float* block, int64_t units, float* out) {
  for (int64_t unit = 0; unit < units; ++unit) {
    for (int l = 0; l < kLanes; ++l) out[l * units + unit] = block[unit * kLanes + l];
  }
}

}  // namespace

void dense_forward_block(const Dense& layer, const float* x, const float* weight, const float* bias, bool add,
                         float* y) {
  product({layer, x, weight, bias, add, y});
}

void dense_weight_block(const Dense& layer, const float* x, const float* grad, float* grad_weight, float* grad_bias) {
  static thread_local std::vector<float> memory;
  memory.resize(std::max<size_t>(memory.size(), (layer.inputs + layer.outputs) * kLanes));
  float* images = memory.data();
  float* given = images + layer.inputs * kLanes;
  transpose(x, layer.inputs, images);
  transpose(grad, layer.outputs, given);
  weight_gradient({layer, images, given, grad_weight});
  if (!grad_bias) return;
  for (int64_t unit = 0; unit < layer.outputs; ++unit) grad_bias[unit] += total<kLanes>(grad + unit * kLanes);
}

void dense_input_block(const Dense& layer, const float* weight, const float* grad, bool add, float* grad_x) {
  transposed_product({layer, grad, weight, nullptr, add, grad_x});
}

}  // namespace fedsynsam

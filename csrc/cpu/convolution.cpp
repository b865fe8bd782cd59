// Convolution, 2x2 max pooling and ReLU in one pass, and its gradients: fedsynsam.h says what comes out.
#include "cpu/convolution.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/tiles.h"

namespace fedsynsam {
namespace {

constexpr int64_t kStrip = 24576;  // bytes of gradients that a pass over rows reads
constexpr uint8_t kCut = 4;        // the code of a window that ReLU made zero; below it, the place of its maximum

enum class Windows { kPooled, kPicked };  // what becomes of a window of sums: see pool and pick below

// The largest of four values and its place, for each lane; where ReLU makes it zero, zero and kCut. A NaN wins. Loops
// over lanes, not vectors: compilers turn comparisons of the widest vectors into scalars.
template <int kWidth>
FSS_INLINE void pool(const float* window, float* out, uint8_t* codes) {
  int32_t code[kWidth];
  for (int l = 0; l < kWidth; ++l) {
    float best = window[l];
    int32_t place = 0;
    for (int q = 1; q < 4; ++q) {
      const float value = window[q * kWidth + l];
      const bool better = value > best || value != value;
      best = better ? value : best;
      place = better ? q : place;
    }
    out[l] = best <= 0.0f ? 0.0f : best;
    code[l] = best <= 0.0f ? kCut : place;
  }
  for (int l = 0; l < kWidth; ++l) codes[l] = static_cast<uint8_t>(code[l]);
}

// Adds to `out` the value at the place that `codes` names, for each lane; nothing where ReLU made the window zero.
template <int kWidth>
FSS_INLINE void pick(const float* window, float* out, const uint8_t* codes) {
  for (int l = 0; l < kWidth; ++l) {
    const float first = window[l], second = window[kWidth + l];
    const float third = window[2 * kWidth + l], fourth = window[3 * kWidth + l];
    const int32_t code = codes[l];
    const float upper = code == 0 ? first : second, lower = code == 2 ? third : fourth;
    const float value = code < 2 ? upper : lower;
    out[l] += code == kCut ? 0.0f : value;
  }
}

// One window of the pooled output, kOutputs channels from `channel` on.
template <typename Isa, Windows kWindows, int kOutputs, int kKernel>
FSS_INLINE void forward_window(const ConvolutionShape& s, const float* x, const float* weight, const float* bias,
                               float* out, uint8_t* codes, int64_t channel, int64_t row, int64_t column) {
  using V = typename Vector<Isa::kWidth>::type;
  const int64_t taps = s.inputs * kKernel * kKernel, step = s.width * kLanes;
  const float* w = weight + channel * taps;
  V sum[kOutputs][4];
  FSS_UNROLL for (int o = 0; o < kOutputs; ++o) {
    FSS_UNROLL for (int q = 0; q < 4; ++q) sum[o][q] = bias ? V{} + bias[channel + o] : V{};
  }
  for (int64_t input = 0; input < s.inputs; ++input) {
    const float* image = x + ((input * s.height + 2 * row) * s.width + 2 * column) * kLanes;
    for (int ky = 0; ky < kKernel; ++ky, image += step, w += kKernel) {
      FSS_UNROLL for (int kx = 0; kx < kKernel; ++kx) {
        const float* p = image + kx * kLanes;
        const V x00 = *reinterpret_cast<const V*>(p), x01 = *reinterpret_cast<const V*>(p + kLanes);
        const V x10 = *reinterpret_cast<const V*>(p + step), x11 = *reinterpret_cast<const V*>(p + step + kLanes);
        FSS_UNROLL for (int o = 0; o < kOutputs; ++o) {
          const float tap = w[o * taps + kx];
          sum[o][0] += x00 * tap;
          sum[o][1] += x01 * tap;
          sum[o][2] += x10 * tap;
          sum[o][3] += x11 * tap;
        }
      }
    }
  }
  const int64_t area = s.pooled_height() * s.pooled_width();
  const int64_t place = (channel * area + row * s.pooled_width() + column) * kLanes;
  FSS_UNROLL for (int o = 0; o < kOutputs; ++o) {
    const auto* window = reinterpret_cast<const float*>(sum[o]);
    const int64_t target = place + o * area * kLanes;
    if (kWindows == Windows::kPooled) pool<Isa::kWidth>(window, out + target, codes + target);
    if (kWindows == Windows::kPicked) pick<Isa::kWidth>(window, out + target, codes + target);
  }
}

template <typename Isa, Windows kWindows, int kKernel>
FSS_INLINE void forward_block(const ConvolutionShape& s, const float* x, const float* weight, const float* bias,
                              float* out, uint8_t* codes) {
  const int64_t full = s.outputs / Isa::kOutputs * Isa::kOutputs;
  for (int part = 0; part < kLanes; part += Isa::kWidth) {
    for (int64_t row = 0; row < s.pooled_height(); ++row) {
      for (int64_t o = 0; o < full; o += Isa::kOutputs) {
        for (int64_t column = 0; column < s.pooled_width(); ++column) {
          forward_window<Isa, kWindows, Isa::kOutputs, kKernel>(s, x + part, weight, bias, out + part, codes + part, o,
                                                                row, column);
        }
      }
      for (int64_t o = full; o < s.outputs; ++o) {
        for (int64_t column = 0; column < s.pooled_width(); ++column) {
          forward_window<Isa, kWindows, 1, kKernel>(s, x + part, weight, bias, out + part, codes + part, o, row,
                                                    column);
        }
      }
    }
  }
}

// The gradient before pooling and ReLU of `count` channels from `channel` on and rows [first, last), both even, from
// that after them: full [count, last - first, columns, lane].
FSS_INLINE void unpool(const ConvolutionShape& s, const float* grad, const uint8_t* codes, float* full, int64_t channel,
                       int64_t count, int64_t first, int64_t last) {
  const int64_t columns = s.columns(), area = s.pooled_height() * s.pooled_width();
  for (int64_t o = 0; o < count; ++o) {
    for (int64_t row = first; row < last; row += 2) {
      const int64_t place = ((channel + o) * area + row / 2 * s.pooled_width()) * kLanes;
      const float* given = grad + place;
      const uint8_t* code = codes + place;
      float* window = full + (o * (last - first) + row - first) * columns * kLanes;
      for (int64_t column = 0; column < columns; column += 2) {
        for (int l = 0; l < kLanes; ++l) {
          const float g = given[l];
          const int32_t c = code[l];
          window[l] = c == 0 ? g : 0.0f;
          window[kLanes + l] = c == 1 ? g : 0.0f;
          window[columns * kLanes + l] = c == 2 ? g : 0.0f;
          window[(columns + 1) * kLanes + l] = c == 3 ? g : 0.0f;
        }
        given += kLanes, code += kLanes, window += 2 * kLanes;
      }
    }
  }
}

// Adds what `rows` rows contribute to kOutputs rows of taps: of one input channel and one row of the kernel.
template <typename Isa, int kOutputs, int kKernel>
FSS_INLINE void weight_taps(const ConvolutionShape& s, const float* x, const float* full, float* grad, int64_t rows) {
  using V = typename Vector<Isa::kWidth>::type;
  const int64_t columns = s.columns(), taps = s.inputs * kKernel * kKernel;
  V sum[kOutputs][kKernel];
  FSS_UNROLL for (int o = 0; o < kOutputs; ++o) { FSS_UNROLL for (int kx = 0; kx < kKernel; ++kx) sum[o][kx] = V{}; }
  for (int64_t row = 0; row < rows; ++row) {
    const float* p = x + row * s.width * kLanes;
    const float* g = full + row * columns * kLanes;
    for (int64_t column = 0; column < columns; ++column, p += kLanes, g += kLanes) {
      V given[kOutputs];
      FSS_UNROLL for (int o = 0; o < kOutputs; ++o) {
        given[o] = *reinterpret_cast<const V*>(g + o * rows * columns * kLanes);
      }
      FSS_UNROLL for (int kx = 0; kx < kKernel; ++kx) {
        const V pixel = *reinterpret_cast<const V*>(p + kx * kLanes);
        FSS_UNROLL for (int o = 0; o < kOutputs; ++o) sum[o][kx] += given[o] * pixel;
      }
    }
  }
  FSS_UNROLL for (int o = 0; o < kOutputs; ++o) {
    FSS_UNROLL for (int kx = 0; kx < kKernel; ++kx) {
      grad[o * taps + kx] += total<Isa::kWidth>(reinterpret_cast<const float*>(&sum[o][kx]));
    }
  }
}

// Adds d loss / d bias of one channel: what `pixels` pixels before pooling contribute.
template <typename Isa>
FSS_INLINE void bias_pixels(const float* full, int64_t pixels, float* grad) {
  using V = typename Vector<Isa::kWidth>::type;
  for (int part = 0; part < kLanes; part += Isa::kWidth) {
    V sum = V{};
    for (int64_t p = 0; p < pixels; ++p) sum += *reinterpret_cast<const V*>(full + p * kLanes + part);
    *grad += total<Isa::kWidth>(reinterpret_cast<const float*>(&sum));
  }
}

// Adds d loss / d weight and d loss / d bias (unless null) of kOutputs channels from `channel` on.
template <typename Isa, int kOutputs, int kKernel>
FSS_INLINE void weight_channels(const ConvolutionShape& s, const float* x, const float* grad, const uint8_t* codes,
                                float* full, float* grad_weight, float* grad_bias, int64_t channel) {
  // As many rows at a time as stay in the L1 cache with those of the image.
  const int64_t strip = std::max<int64_t>(1, kStrip / (kOutputs * 2 * s.columns() * kLanes * 4)) * 2;
  for (int64_t first = 0; first < s.rows(); first += strip) {
    const int64_t last = std::min(s.rows(), first + strip);
    unpool(s, grad, codes, full, channel, kOutputs, first, last);
    const int64_t pixels = (last - first) * s.columns();
    for (int64_t o = 0; grad_bias && o < kOutputs; ++o) {
      bias_pixels<Isa>(full + o * pixels * kLanes, pixels, grad_bias + channel + o);
    }
    float* taps = grad_weight + channel * s.inputs * kKernel * kKernel;
    for (int64_t input = 0; input < s.inputs; ++input) {
      for (int ky = 0; ky < kKernel; ++ky, taps += kKernel) {
        const float* image = x + (input * s.height + first + ky) * s.width * kLanes;
        for (int part = 0; part < kLanes; part += Isa::kWidth) {
          weight_taps<Isa, kOutputs, kKernel>(s, image + part, full + part, taps, last - first);
        }
      }
    }
  }
}

// Adds d loss / d weight and d loss / d bias (unless null) of one block.
template <typename Isa, int kKernel>
FSS_INLINE void weight_block(const ConvolutionShape& s, const float* x, const float* grad, const uint8_t* codes,
                             float* full, float* grad_weight, float* grad_bias) {
  const int64_t even = s.outputs / Isa::kOutputs * Isa::kOutputs;
  for (int64_t o = 0; o < even; o += Isa::kOutputs) {
    weight_channels<Isa, Isa::kOutputs, kKernel>(s, x, grad, codes, full, grad_weight, grad_bias, o);
  }
  for (int64_t o = even; o < s.outputs; ++o) {
    weight_channels<Isa, 1, kKernel>(s, x, grad, codes, full, grad_weight, grad_bias, o);
  }
}

// kInputs channels of d loss / d x at kColumns pixels of one row. A pixel of `full` adds to kKernel neighbours in a
// row.
template <typename Isa, int kInputs, int kKernel>
FSS_INLINE void input_pixels(const ConvolutionShape& s, const float* full, const float* weight, bool add, float* grad_x,
                             int64_t channel, int64_t row, int64_t left) {
  using V = typename Vector<Isa::kWidth>::type;
  constexpr int kColumns = Isa::kColumns;
  const int64_t rows = s.rows(), columns = s.columns();
  V sum[kInputs][kColumns];
  FSS_UNROLL for (int i = 0; i < kInputs; ++i) { FSS_UNROLL for (int j = 0; j < kColumns; ++j) sum[i][j] = V{}; }
  const int64_t lowest = std::max<int64_t>(0, row - rows + 1), highest = std::min<int64_t>(kKernel - 1, row);
  for (int64_t o = 0; o < s.outputs; ++o) {
    for (int64_t ky = lowest; ky <= highest; ++ky) {
      const float* g = full + ((o * rows + row - ky) * columns + left) * kLanes;
      const float* w = weight + ((o * s.inputs + channel) * kKernel + ky) * kKernel;
      FSS_UNROLL for (int d = 1 - kKernel; d < kColumns; ++d) {
        if (left + d < 0 || left + d >= columns) continue;
        const V given = *reinterpret_cast<const V*>(g + d * kLanes);
        FSS_UNROLL for (int kx = 0; kx < kKernel; ++kx) {
          if (d + kx < 0 || d + kx >= kColumns) continue;
          FSS_UNROLL for (int i = 0; i < kInputs; ++i) { sum[i][d + kx] += given * w[i * kKernel * kKernel + kx]; }
        }
      }
    }
  }
  FSS_UNROLL for (int i = 0; i < kInputs; ++i) {
    float* target = grad_x + (((channel + i) * s.height + row) * s.width + left) * kLanes;
    FSS_UNROLL for (int j = 0; j < kColumns; ++j) {
      if (left + j >= s.width) continue;
      auto* pixel = reinterpret_cast<V*>(target + j * kLanes);
      *pixel = add ? *pixel + sum[i][j] : sum[i][j];
    }
  }
}

template <typename Isa, int kKernel>
FSS_INLINE void input_block(const ConvolutionShape& s, const float* full, const float* weight, bool add,
                            float* grad_x) {
  const int64_t even = s.inputs / Isa::kInputs * Isa::kInputs;
  for (int part = 0; part < kLanes; part += Isa::kWidth) {
    for (int64_t row = 0; row < s.height; ++row) {
      for (int64_t left = 0; left < s.width; left += Isa::kColumns) {
        for (int64_t i = 0; i < even; i += Isa::kInputs) {
          input_pixels<Isa, Isa::kInputs, kKernel>(s, full + part, weight, add, grad_x + part, i, row, left);
        }
        for (int64_t i = even; i < s.inputs; ++i) {
          input_pixels<Isa, 1, kKernel>(s, full + part, weight, add, grad_x + part, i, row, left);
        }
      }
    }
  }
}

template <typename Isa, Windows kWindows>
FSS_INLINE void forward_any(const ConvolutionForward& f) {
  if (f.shape.kernel == 5) return forward_block<Isa, kWindows, 5>(f.shape, f.x, f.weight, f.bias, f.out, f.codes);
  forward_block<Isa, kWindows, 3>(f.shape, f.x, f.weight, f.bias, f.out, f.codes);
}

template <typename Isa>
FSS_INLINE void pool_any(const ConvolutionForward& f) {
  forward_any<Isa, Windows::kPooled>(f);
}

template <typename Isa>
FSS_INLINE void pick_any(const ConvolutionForward& f) {
  forward_any<Isa, Windows::kPicked>(f);
}

template <typename Isa, int kKernel>
FSS_INLINE void backward_kernel(const ConvolutionBackward& b) {
  static thread_local std::vector<float> memory;  // of a block before pooling: taken anew, its pages would be, too
  const ConvolutionShape& s = b.shape;
  memory.resize(std::max<size_t>(memory.size(), s.unpooled() + kLanes));
  auto* full = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  if (b.grad_weight) {
    weight_block<Isa, kKernel>(s, b.x, b.grad, b.codes, full, b.grad_weight, b.grad_bias);
  }
  if (b.grad_x) {
    unpool(s, b.grad, b.codes, full, 0, s.outputs, 0, s.rows());
    input_block<Isa, kKernel>(s, full, b.weight, b.add_x, b.grad_x);
  }
}

template <typename Isa>
FSS_INLINE void backward_any(const ConvolutionBackward& b) {
  b.shape.kernel == 5 ? backward_kernel<Isa, 5>(b) : backward_kernel<Isa, 3>(b);
}

}  // namespace

FSS_FOR_EACH_ISA(convolution_pool_block, ConvolutionForward, pool_any)
FSS_FOR_EACH_ISA(convolution_pick_block, ConvolutionForward, pick_any)
FSS_FOR_EACH_ISA(convolution_backward_block, ConvolutionBackward, backward_any)

}  // namespace fedsynsam

// Dense layers of one block of images: x [inputs, lane], y [outputs, lane], weight [outputs, inputs].
#pragma once

#include <cstdint>

namespace fedsynsam {

struct Dense {
  int64_t inputs, outputs;
};
// y = weight x + bias or, with `add`, y += weight x + bias; `bias` may be null.
void dense_forward_block(const Dense& layer, const float* x, const float* weight, const float* bias, bool add,
                         float* y);
// Adds the gradients in weight and bias (`grad_bias` may be null).
void dense_weight_block(const Dense& layer, const float* x, const float* grad, float* grad_weight, float* grad_bias);
// Writes the gradient in x or, with `add`, adds it.
void dense_input_block(const Dense& layer, const float* weight, const float* grad, bool add, float* grad_x);

}  // namespace fedsynsam

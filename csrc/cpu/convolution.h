// Convolution, pooling and ReLU of one block of images: fedsynsam.h says what comes out.
#pragma once

#include <cstdint>

#include "fedsynsam.h"

namespace fedsynsam {

struct ConvolutionForward {
  const ConvolutionShape& shape;
  const float* x;
  const float* weight;
  const float* bias;
  float* out;
  uint8_t* codes;
};
void convolution_pool_block(const ConvolutionForward& args);
void convolution_pick_block(const ConvolutionForward& args);  // adds to `out`, only reads `codes`; `bias` may be null

struct ConvolutionBackward {
  const ConvolutionShape& shape;
  const float* x;
  const float* weight;
  const float* grad;
  const uint8_t* codes;
  float* grad_weight;  // added to; or null, then x is not used
  float* grad_bias;    // added to; or null
  float* grad_x;       // written or, with add_x, added to; or null
  bool add_x;
};
void convolution_backward_block(const ConvolutionBackward& args);

}  // namespace fedsynsam

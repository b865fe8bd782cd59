// Forward and backward passes of a small classifier, block of images by block: what a block needs stays in a core's
// cache, and a pass is one call. fedsynsam.h says what comes out.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <vector>

#include "cpu/convolution.h"
#include "cpu/dense.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"

namespace fedsynsam {
namespace {

constexpr int64_t kParts = 8;  // gradients that are summed apart, at most, so that as many threads can share a pass

struct Layer {
  bool convolution;
  ConvolutionShape shape;  // if it is one
  Dense dense;             // if it is not
  bool relu;               // of a dense layer
  int64_t weight, bias;    // where they begin in the flat weights
  int64_t out;             // floats of a block
};

std::vector<Layer> layers_of(const Network& network) {
  std::vector<Layer> layers;
  int64_t next = 0;
  for (const ConvolutionShape& shape : network.convolutions) {
    layers.push_back({true, shape, {}, false, next, next + shape.weights(), shape.pooled()});
    next += shape.weights() + shape.outputs;
  }
  for (size_t d = 1; d < network.widths.size(); ++d) {
    const Dense dense{network.widths[d - 1], network.widths[d]};
    const int64_t bias = next + dense.inputs * dense.outputs;
    layers.push_back({false, {}, dense, d + 1 < network.widths.size(), next, bias, dense.outputs * kLanes});
    next = bias + dense.outputs;
  }
  return layers;
}

int64_t image_floats(const Network& network) { return network.channels * network.height * network.width * kLanes; }

// The memory of a block: [0] is for what enters the first layer, [i + 1] for what leaves the i-th.
struct Block {
  std::vector<float*> values, gradients;  // of the loss
  std::vector<uint8_t*> codes;            // of the i-th layer
  std::vector<float*> tangents, changes;  // of values, and of gradients; for second derivatives
};

// Memory of this thread, kept from pass to pass: taken anew, its pages would be, too.
Block block_memory(const Network& network, const std::vector<Layer>& layers, bool second) {
  static thread_local std::vector<float> floats;
  static thread_local std::vector<uint8_t> bytes;
  int64_t all = image_floats(network);
  for (const Layer& layer : layers) all += layer.out;
  const size_t kinds = second ? 4 : 2;
  floats.resize(std::max<size_t>(floats.size(), kinds * all + kLanes));
  bytes.resize(std::max<size_t>(bytes.size(), all));
  auto* next = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(floats.data()) + 63) / 64 * 64);
  Block block;
  for (auto* kind : {&block.values, &block.gradients, &block.tangents, &block.changes}) {
    if (kind == &block.tangents && !second) break;
    kind->push_back(next);
    next += image_floats(network);
    for (const Layer& layer : layers) {
      kind->push_back(next);
      next += layer.out;
    }
  }
  uint8_t* code = bytes.data();
  for (const Layer& layer : layers) {
    block.codes.push_back(code);
    code += layer.out;
  }
  return block;
}

// `load` of stored images. Lanes that are left repeat the first image, and get zeros after: one loop for all counts.
void load_stored(const NetworkBatch& batch, int64_t first, int64_t count, float* out) {
  const StoredImages& stored = *batch.stored;
  const uint8_t* images[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) {
    images[l] = stored.bytes + batch.indices[first + (l < count ? l : 0)] * stored.pixels * stored.channels;
  }
  for (int64_t channel = 0; channel < stored.channels; ++channel) {
    const float* table = batch.table + channel * 256;
    for (int64_t at = channel; at < stored.pixels * stored.channels; at += stored.channels, out += kLanes) {
      FSS_UNROLL for (int64_t l = 0; l < kLanes; ++l) out[l] = table[images[l][at]];
      for (int64_t l = count; l < kLanes; ++l) out[l] = 0.0f;
    }
  }
}

// Lays images [first, first + count) out as [channel, row, column, lane]; the lanes that are left are zero.
void load(const Network& network, const NetworkBatch& batch, int64_t first, int64_t count, float* out) {
  if (batch.stored) return load_stored(batch, first, count, out);
  const int64_t* strides = batch.strides;
  const float* images = batch.images + first * strides[0];
  if (count < kLanes) std::fill(out, out + image_floats(network), 0.0f);
  for (int64_t channel = 0; channel < network.channels; ++channel) {
    for (int64_t row = 0; row < network.height; ++row) {
      const float* pixels = images + channel * strides[1] + row * strides[2];
      for (int64_t column = 0; column < network.width; ++column, out += kLanes) {
        for (int64_t l = 0; l < count; ++l) out[l] = pixels[l * strides[0] + column * strides[3]];
      }
    }
  }
}

// Gradients that ReLU lets through: those of values y that it did not make zero.
void mask(const float* y, int64_t count, float* gradient) {
  for (int64_t i = 0; i < count; ++i) gradient[i] = y[i] <= 0.0f ? 0.0f : gradient[i];
}

// Fills `values` and `codes` from the images on.
void forward(const std::vector<Layer>& layers, const float* weights, const Block& block) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const float *x = block.values[i], *weight = weights + layer.weight, *bias = weights + layer.bias;
    float* y = block.values[i + 1];
    if (layer.convolution) {
      convolution_pool_block({layer.shape, x, weight, bias, y, block.codes[i]});
    } else {
      dense_forward_block(layer.dense, x, weight, bias, false, y);
      if (layer.relu) mask(y, layer.out, y);
    }
  }
}

// Fills `tangents`: how the values change as the weights move along `direction`.
void forward_tangents(const std::vector<Layer>& layers, const float* weights, const float* direction,
                      const Block& block) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const float *x = block.values[i], *moved = i > 0 ? block.tangents[i] : nullptr;  // images stay
    const float *change = direction + layer.weight, *bias = direction + layer.bias;
    float* y = block.tangents[i + 1];
    if (layer.convolution) {
      std::fill(y, y + layer.out, 0.0f);
      convolution_pick_block({layer.shape, x, change, bias, y, block.codes[i]});
      if (moved) convolution_pick_block({layer.shape, moved, weights + layer.weight, nullptr, y, block.codes[i]});
    } else {
      dense_forward_block(layer.dense, x, change, bias, false, y);
      if (moved) dense_forward_block(layer.dense, moved, weights + layer.weight, nullptr, true, y);
      if (layer.relu) mask(block.values[i + 1], layer.out, y);
    }
  }
}

void add_weight_gradient(const Layer& layer, const float* x, const float* grad, const uint8_t* codes, float* weight,
                         float* bias) {
  if (layer.convolution) {
    convolution_backward_block({layer.shape, x, nullptr, grad, codes, weight, bias, nullptr, false});
  } else {
    dense_weight_block(layer.dense, x, grad, weight, bias);
  }
}

void input_gradient(const Layer& layer, const float* weight, const float* grad, const uint8_t* codes, bool add,
                    float* grad_x) {
  if (layer.convolution) {
    convolution_backward_block({layer.shape, nullptr, weight, grad, codes, nullptr, nullptr, grad_x, add});
  } else {
    dense_input_block(layer.dense, weight, grad, add, grad_x);
  }
}

// Adds the block's gradient in the weights, from `gradients` of the logits on.
void backward(const std::vector<Layer>& layers, const float* weights, const Block& block, float* out) {
  for (size_t i = layers.size(); i-- > 0;) {
    const Layer& layer = layers[i];
    const float* grad = block.gradients[i + 1];
    add_weight_gradient(layer, block.values[i], grad, block.codes[i], out + layer.weight, out + layer.bias);
    if (i == 0) continue;
    input_gradient(layer, weights + layer.weight, grad, block.codes[i], false, block.gradients[i]);
    if (layers[i - 1].relu) mask(block.values[i], layers[i - 1].out, block.gradients[i]);
  }
}

// `gradients` as before and `changes`, how these change as the weights move along `direction`, from those of the logits
// on; adds what this says of the weights to `out`, unless null. With `to_images`, `changes` of the images too.
void backward_changes(const std::vector<Layer>& layers, const float* weights, const float* direction,
                      const Block& block, float* out, bool to_images) {
  for (size_t i = layers.size(); i-- > 0;) {
    const Layer& layer = layers[i];
    const float *grad = block.gradients[i + 1], *change = block.changes[i + 1];
    const uint8_t* codes = block.codes[i];
    if (out) {
      float* weight = out + layer.weight;
      add_weight_gradient(layer, block.values[i], change, codes, weight, out + layer.bias);
      if (i > 0) add_weight_gradient(layer, block.tangents[i], grad, codes, weight, nullptr);
    }
    if (i == 0 && !to_images) continue;
    input_gradient(layer, weights + layer.weight, change, codes, false, block.changes[i]);
    input_gradient(layer, direction + layer.weight, grad, codes, true, block.changes[i]);
    if (i == 0) continue;
    input_gradient(layer, weights + layer.weight, grad, codes, false, block.gradients[i]);
    if (!layers[i - 1].relu) continue;
    mask(block.values[i], layers[i - 1].out, block.changes[i]);
    mask(block.values[i], layers[i - 1].out, block.gradients[i]);
  }
}

// The classes, or soft labels, of one lane.
struct Target {
  const float* soft;  // or null
  int64_t label;

  Target(const NetworkBatch& batch, int64_t image, int64_t classes)
      : soft(batch.targets ? batch.targets + image * classes : nullptr), label(soft ? 0 : batch.labels[image]) {}
  bool valid(int64_t classes) const { return label >= 0 && label < classes; }
  float of(int64_t c) const { return soft ? soft[c] : (c == label ? 1.0f : 0.0f); }
  float mass(int64_t classes) const {
    float sum = soft ? 0.0f : 1.0f;
    for (int64_t c = 0; soft && c < classes; ++c) sum += soft[c];
    return sum;
  }
};

float share_of(const NetworkBatch& batch, int64_t image) {
  return batch.share ? batch.share[image] : 1.0f / static_cast<float>(batch.count);
}

// log Σ exp(logits) of each of `count` lanes.
void log_sums(const float* logits, int64_t classes, int64_t count, float* out) {
  for (int64_t l = 0; l < count; ++l) {
    float highest = logits[l], sum = 0.0f;
    for (int64_t c = 1; c < classes; ++c) highest = std::max(highest, logits[c * kLanes + l]);
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(logits[c * kLanes + l] - highest);
    out[l] = highest + std::log(sum);
  }
}

// The block's cross-entropies and, unless null, the gradients of their weighted sum in the logits [classes, lane];
// other lanes give none. False if a label is no class.
bool losses(const NetworkBatch& batch, int64_t first, int64_t count, int64_t classes, const float* logits, float* loss,
            float* gradient) {
  float log_sum[kLanes];
  log_sums(logits, classes, count, log_sum);
  if (gradient) std::fill(gradient, gradient + classes * kLanes, 0.0f);
  for (int64_t l = 0; l < count; ++l) {
    const Target target(batch, first + l, classes);
    if (!target.valid(classes)) return false;
    const float mass = target.mass(classes), share = share_of(batch, first + l);
    loss[l] = 0.0f;
    for (int64_t c = 0; c < classes; ++c) {
      const float log_probability = logits[c * kLanes + l] - log_sum[l], wanted = target.of(c);
      if (wanted != 0.0f) loss[l] -= wanted * log_probability;  // 0 · ∞ is not meant
      if (gradient) gradient[c * kLanes + l] = share * (mass * std::exp(log_probability) - wanted);
    }
  }
  return true;
}

// How the gradients that `losses` gives change with the logits' tangents; and, unless null, the derivative of the
// weighted losses' change in the soft labels.
void loss_changes(const NetworkBatch& batch, int64_t first, int64_t count, int64_t classes, const float* logits,
                  const float* tangents, float* changes, float* in_targets) {
  float log_sum[kLanes];
  log_sums(logits, classes, count, log_sum);
  std::fill(changes, changes + classes * kLanes, 0.0f);
  for (int64_t l = 0; l < count; ++l) {
    const float mass = Target(batch, first + l, classes).mass(classes), share = share_of(batch, first + l);
    float mean = 0.0f;
    for (int64_t c = 0; c < classes; ++c) {
      mean += std::exp(logits[c * kLanes + l] - log_sum[l]) * tangents[c * kLanes + l];
    }
    for (int64_t c = 0; c < classes; ++c) {
      const float probability = std::exp(logits[c * kLanes + l] - log_sum[l]);
      const float apart = tangents[c * kLanes + l] - mean;
      changes[c * kLanes + l] = share * mass * probability * apart;
      if (in_targets) in_targets[(first + l) * classes + c] = -share * apart;
    }
  }
}

// Calls body(first, count, part) for each block of the batch, the blocks of a part one after the other, and adds the
// parts up in `out` [size] (unless null) in their order: the same sums for every number of threads. What body returns
// false for makes all false.
template <typename Body>
bool for_blocks(int64_t images, float* out, int64_t size, int threads, const Body& body) {
  const int64_t blocks = (images + kLanes - 1) / kLanes;
  const int64_t parts = out ? std::clamp<int64_t>(blocks / 2, 1, kParts) : blocks;
  std::vector<float> sums(out && parts > 1 ? (parts - 1) * size : 0);
  if (out) std::fill(out, out + size, 0.0f);
  std::atomic<bool> valid{true};
  parallel_for(parts, threads, 1, [&](int64_t part, int) {
    float* own = !out || part == 0 ? out : sums.data() + (part - 1) * size;
    for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) {
      const int64_t first = b * kLanes;
      if (!body(first, std::min<int64_t>(kLanes, images - first), own)) valid = false;
    }
  });
  for (const float* next = sums.data(); next < sums.data() + sums.size(); next += size) {
    for (int64_t i = 0; i < size; ++i) out[i] += next[i];
  }
  return valid;
}

}  // namespace

int64_t Network::parameters() const {
  const Layer last = layers_of(*this).back();
  return last.bias + last.dense.outputs;
}

bool network_gradient(const Network& network, const float* weights, const NetworkBatch& batch, float* gradient,
                      float* loss, int threads) {
  const std::vector<Layer> layers = layers_of(network);
  std::vector<float> own(batch.count);
  const bool valid =
      for_blocks(batch.count, gradient, network.parameters(), threads, [&](int64_t first, int64_t count, float* sum) {
        const Block block = block_memory(network, layers, false);
        load(network, batch, first, count, block.values[0]);
        forward(layers, weights, block);
        if (!losses(batch, first, count, network.widths.back(), block.values.back(), own.data() + first,
                    block.gradients.back())) {
          return false;
        }
        backward(layers, weights, block, sum);
        return true;
      });
  double sum = 0.0;
  for (int64_t i = 0; i < batch.count; ++i) sum += static_cast<double>(own[i]) * share_of(batch, i);
  *loss = static_cast<float>(sum);
  return valid;
}

bool network_second(const Network& network, const float* weights, const float* direction, const NetworkBatch& batch,
                    const NetworkSecond& out, int threads) {
  const std::vector<Layer> layers = layers_of(network);
  const int64_t classes = network.widths.back(), pixels = image_floats(network) / kLanes;
  return for_blocks(batch.count, out.in_weights, network.parameters(), threads,
                    [&](int64_t first, int64_t count, float* sum) {
                      const Block block = block_memory(network, layers, true);
                      float own[kLanes];
                      load(network, batch, first, count, block.values[0]);
                      forward(layers, weights, block);
                      if (!losses(batch, first, count, classes, block.values.back(), own, block.gradients.back()))
                        return false;
                      forward_tangents(layers, weights, direction, block);
                      loss_changes(batch, first, count, classes, block.values.back(), block.tangents.back(),
                                   block.changes.back(), out.in_targets);
                      backward_changes(layers, weights, direction, block, sum, out.in_images != nullptr);
                      for (int64_t l = 0; out.in_images && l < count; ++l) {
                        float* image = out.in_images + (first + l) * pixels;
                        for (int64_t pixel = 0; pixel < pixels; ++pixel)
                          image[pixel] = block.changes[0][pixel * kLanes + l];
                      }
                      return true;
                    });
}

bool network_evaluate(const Network& network, const float* weights, const NetworkBatch& batch, int64_t* right,
                      float* loss) {
  const std::vector<Layer> layers = layers_of(network);
  const int64_t classes = network.widths.back();
  double sum = 0.0;
  *right = 0;
  const bool valid = for_blocks(batch.count, nullptr, 0, 1, [&](int64_t first, int64_t count, float*) {
    const Block block = block_memory(network, layers, false);
    const float* logits = block.values.back();
    float own[kLanes];
    load(network, batch, first, count, block.values[0]);
    forward(layers, weights, block);
    if (!losses(batch, first, count, classes, logits, own, nullptr)) return false;
    for (int64_t l = 0; l < count; ++l) {
      sum += own[l];
      int64_t best = 0;
      for (int64_t c = 1; c < classes; ++c) best = logits[c * kLanes + l] > logits[best * kLanes + l] ? c : best;
      *right += best == batch.labels[first + l];
    }
    return true;
  });
  *loss = static_cast<float>(sum);
  return valid;
}

}  // namespace fedsynsam

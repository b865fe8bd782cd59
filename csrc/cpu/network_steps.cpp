// A client's local steps of a small network: fedsynsam.h says what they are.
#include <cmath>
#include <vector>

#include "fedsynsam.h"

namespace fedsynsam {
namespace {

// ops/clip.py does the same to rows.
void clip_length(float* gradient, int64_t size, float longest) {
  float length;
  sam_norm_cpu(nullptr, {gradient, nullptr, Dtype::f32, 1.0f, 0.0f, false}, 1, size, &length, 1);
  const float scale = longest / length;
  if (scale >= 1.0f) return;
  for (int64_t i = 0; i < size; ++i) gradient[i] *= scale;
}

}  // namespace

Wrong network_steps(const Network& network, const NetworkSteps& work) {
  const int64_t size = network.parameters();
  const std::vector<float> table = work.images.table();
  if (!work.images.have(work.indices, work.steps * work.batch)) return Wrong::index;
  std::vector<int64_t> labels(work.batch);
  float unused;
  const float* weights = work.step.weights;
  const float* other = work.shared ? work.other : work.given;
  for (int64_t k = 0; k < work.steps; ++k) {
    const int64_t* indices = work.indices + k * work.batch;
    for (int64_t i = 0; i < work.batch; ++i) labels[i] = work.labels[indices[i]];
    const NetworkBatch batch{nullptr, {},           work.batch,   labels.data(), nullptr,
                             nullptr, &work.images, table.data(), indices};
    if (work.shared && !network_gradient(network, weights, *work.shared, work.other, &unused, 1)) return Wrong::label;
    if (work.own && !network_gradient(network, weights, batch, work.gradient, &unused, 1)) return Wrong::label;
    const float* at = weights;
    if (work.own || other) {
      const bool mixed = work.own && other;
      const SamDirection direction{
          work.own ? work.gradient : other, mixed ? other : nullptr, Dtype::f32, work.beta, work.keep, false};
      sam_perturb_cpu(weights, direction, 1, size, work.rho, nullptr, work.ahead, 1);
      at = work.ahead;
    }
    if (!network_gradient(network, at, batch, work.gradient, work.losses + k, 1)) return Wrong::label;
    if (std::isfinite(work.clip)) clip_length(work.gradient, size, work.clip);
    sam_step_cpu(work.step, 1, size, 1);
  }
  return Wrong::nothing;
}

}  // namespace fedsynsam

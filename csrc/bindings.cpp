// The Python face of the C++ and CUDA operations: raw pointers, sizes and a stream in; nothing else.
// Shapes, dtypes and devices are checked in fedsynsam/ops before a pointer gets here.
#include "bindings.h"

#include <array>

#include "cpu/large_output.h"

namespace py = pybind11;
using namespace fedsynsam::bindings;

// --- quantize, aggregate ---
namespace {

void bind_quantize(py::module_& m) {
  using namespace fedsynsam;
  m.def(
      "quantize_cpu",
      [](uintptr_t update, int dtype, uintptr_t residual, uintptr_t seeds, int64_t rows, int64_t n, int bits,
         int64_t bucket, int norm, int rounding, uintptr_t codes, uintptr_t scales, uintptr_t new_residual,
         uintptr_t nonfinite, int threads) {
        quantize_cpu(quantize_arguments(update, dtype, residual, seeds, rows, n, bits, bucket, norm, rounding, codes,
                                        scales, new_residual, nonfinite),
                     threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "dequantize_cpu",
      [](uintptr_t codes, uintptr_t scales, int64_t rows, int64_t n, int bits, int64_t bucket, uintptr_t out,
         int threads) {
        dequantize_cpu(pointer<uint8_t>(codes), pointer<float>(scales), rows, n, {bits, bucket}, pointer<float>(out),
                       threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

void bind_aggregate(py::module_& m) {
  using namespace fedsynsam;
  m.def(
      "aggregate_sparse_cpu",
      [](const Addresses& indices, const Addresses& values, const std::vector<int64_t>& counts, uintptr_t weights,
         int64_t n, bool accumulate, uintptr_t out, int threads) {
        const auto payloads = sparse_payloads(indices, values, counts);
        aggregate_sparse_cpu(payloads.data(), pointer<float>(weights), static_cast<int64_t>(payloads.size()), n,
                             accumulate, pointer<float>(out), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "aggregate_codes_cpu",
      [](const Addresses& codes, const Addresses& scales, uintptr_t weights, int64_t n, int bits, int64_t bucket,
         bool accumulate, uintptr_t out, int threads) {
        const auto payloads = codes_payloads(codes, scales);
        aggregate_codes_cpu(payloads.data(), pointer<float>(weights), static_cast<int64_t>(payloads.size()), n,
                            {bits, bucket}, accumulate, pointer<float>(out), threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

// --- topk, index_coding ---
namespace {

void bind_topk(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "topk_cpu",
      [](uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n, int64_t k, uintptr_t indices,
         uintptr_t values, uintptr_t new_residual, uintptr_t nonfinite, int threads) {
        fedsynsam::topk_cpu(
            topk_arguments(update, dtype, residual, rows, n, indices, values, new_residual, nonfinite, threads), k);
      },
      release());
  m.def(
      "chunk_topk_cpu",
      [](uintptr_t update, int dtype, uintptr_t residual, int64_t rows, int64_t n, int64_t chunk, int64_t k_chunk,
         int64_t k_tail, uintptr_t indices, uintptr_t values, uintptr_t new_residual, uintptr_t nonfinite,
         int threads) {
        fedsynsam::chunk_topk_cpu(
            topk_arguments(update, dtype, residual, rows, n, indices, values, new_residual, nonfinite, threads), chunk,
            k_chunk, k_tail);
      },
      release());
  m.def("topk_instruction_sets", &fedsynsam::topk_instruction_sets,
        "Names of the instruction sets that topk_cpu can use here, best first");
  m.def("topk_select_instruction_set", &fedsynsam::topk_select_instruction_set,
        "Make topk_cpu use the named instruction set in this process; False if it cannot");
  m.def(
      "encode_indices_cpu",
      [](uintptr_t indices, int64_t rows, int64_t k, int64_t n, uintptr_t words, int threads) {
        fedsynsam::encode_indices_cpu(pointer<const int32_t>(indices), rows, k, n, pointer<uint32_t>(words), threads);
      },
      release());
  m.def(
      "decode_indices_cpu",
      [](uintptr_t words, int64_t rows, int64_t n, int64_t k, uintptr_t indices, uintptr_t valid, int threads) {
        fedsynsam::decode_indices_cpu(pointer<const uint32_t>(words), rows, n, k, pointer<int32_t>(indices),
                                      pointer<bool>(valid), threads);
      },
      release());
}

}  // namespace

// --- sam ---
namespace {

void bind_sam(py::module_& m) {
  m.def(
      "sam_norm_cpu",
      [](uintptr_t weights, uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive,
         int64_t rows, int64_t n, uintptr_t norm, int threads) {
        fedsynsam::sam_norm_cpu(pointer<float>(weights), sam_direction(gradient, synthetic, dtype, beta, adaptive),
                                rows, n, pointer<float>(norm), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "sam_perturb_cpu",
      [](uintptr_t weights, uintptr_t gradient, uintptr_t synthetic, int dtype, double beta, bool adaptive,
         int64_t rows, int64_t n, double rho, uintptr_t norm, uintptr_t out, int threads) {
        fedsynsam::sam_perturb_cpu(pointer<float>(weights), sam_direction(gradient, synthetic, dtype, beta, adaptive),
                                   rows, n, static_cast<float>(rho), pointer<float>(norm), pointer<float>(out),
                                   threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "sam_step_cpu",
      [](uintptr_t weights, uintptr_t gradient, int dtype, uintptr_t correction, uintptr_t momentum_buffer, double lr,
         double weight_decay, double momentum, int64_t rows, int64_t n, int threads) {
        fedsynsam::sam_step_cpu(
            sam_step_arguments(weights, gradient, dtype, correction, momentum_buffer, lr, weight_decay, momentum), rows,
            n, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

// --- network ---
namespace {

using Sizes = std::array<int64_t, 5>;  // inputs, height, width, outputs, kernel

fedsynsam::ConvolutionShape convolution_shape(const Sizes& s) { return {s[0], s[1], s[2], s[3], s[4]}; }

// Sizes of an image (channels, height, width), of each convolution, and of what enters and leaves the dense layers.
fedsynsam::Network network(const std::array<int64_t, 3>& image, const std::vector<Sizes>& convolutions,
                           const std::vector<int64_t>& widths) {
  fedsynsam::Network result{image[0], image[1], image[2], {}, widths};
  for (const Sizes& sizes : convolutions) result.convolutions.push_back(convolution_shape(sizes));
  return result;
}

fedsynsam::NetworkBatch network_batch(uintptr_t images, const std::array<int64_t, 4>& strides, int64_t count,
                                      uintptr_t labels, uintptr_t targets, uintptr_t share) {
  return {pointer<float>(images),
          {strides[0], strides[1], strides[2], strides[3]},
          count,
          pointer<int64_t>(labels),
          pointer<float>(targets),
          pointer<float>(share)};
}

fedsynsam::StoredImages stored_images(uintptr_t bytes, int64_t images, int64_t pixels, int64_t channels,
                                      uintptr_t shift, uintptr_t scale) {
  return {pointer<uint8_t>(bytes), images, pixels, channels, pointer<float>(shift), pointer<float>(scale)};
}

void bind_network(py::module_& m) {
  using fedsynsam::Network;
  using Strides = std::array<int64_t, 4>;
  py::class_<Network>(m, "Network").def(py::init(&network));
  m.def(
      "gather_images_cpu",
      [](uintptr_t bytes, int64_t images, int64_t pixels, int64_t channels, uintptr_t shift, uintptr_t scale,
         uintptr_t indices, int64_t count, uintptr_t out) {
        return fedsynsam::gather_images(stored_images(bytes, images, pixels, channels, shift, scale),
                                        pointer<int64_t>(indices), count, pointer<float>(out));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def("network_instruction_sets", &fedsynsam::network_instruction_sets,
        "Names of the instruction sets that the passes can use here, best first");
  m.def("network_select_instruction_set", &fedsynsam::network_select_instruction_set,
        "Make the passes use the named instruction set in this process; False if they cannot");
  m.def(
      "network_gradient_cpu",
      [](const Network& net, uintptr_t weights, uintptr_t images, const Strides& strides, int64_t count,
         uintptr_t labels, uintptr_t targets, uintptr_t share, uintptr_t gradient, uintptr_t loss, int threads) {
        return fedsynsam::network_gradient(net, pointer<float>(weights),
                                           network_batch(images, strides, count, labels, targets, share),
                                           pointer<float>(gradient), pointer<float>(loss), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "network_second_cpu",
      [](const Network& net, uintptr_t weights, uintptr_t images, const Strides& strides, int64_t count,
         uintptr_t labels, uintptr_t targets, uintptr_t share, uintptr_t direction, uintptr_t in_weights,
         uintptr_t in_images, uintptr_t in_targets, int threads) {
        return fedsynsam::network_second(
            net, pointer<float>(weights), pointer<float>(direction),
            network_batch(images, strides, count, labels, targets, share),
            {pointer<float>(in_weights), pointer<float>(in_images), pointer<float>(in_targets)}, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "network_evaluate_cpu",
      [](const Network& net, uintptr_t weights, uintptr_t images, const Strides& strides, int64_t count,
         uintptr_t labels, uintptr_t targets, uintptr_t share, uintptr_t right, uintptr_t loss) {
        return fedsynsam::network_evaluate(net, pointer<float>(weights),
                                           network_batch(images, strides, count, labels, targets, share),
                                           pointer<int64_t>(right), pointer<float>(loss));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "network_steps_cpu",
      [](const Network& net, uintptr_t bytes, int64_t images, int64_t pixels, int64_t channels, uintptr_t shift,
         uintptr_t scale, uintptr_t all_labels, uintptr_t indices, int64_t steps, int64_t batch, uintptr_t given,
         uintptr_t shared, const Strides& strides, int64_t count, uintptr_t labels, uintptr_t targets, uintptr_t share,
         bool own, double beta, double rho, double clip, uintptr_t weights, uintptr_t gradient, uintptr_t ahead,
         uintptr_t other, uintptr_t correction, uintptr_t momentum_buffer, double lr, double weight_decay,
         double momentum, uintptr_t losses) {
        const auto set = network_batch(shared, strides, count, labels, targets, share);
        const int f32 = static_cast<int>(fedsynsam::Dtype::f32);
        return static_cast<int>(fedsynsam::network_steps(
            net, {stored_images(bytes, images, pixels, channels, shift, scale), pointer<int64_t>(all_labels),
                  pointer<int64_t>(indices), steps, batch, pointer<float>(given), shared ? &set : nullptr, own,
                  static_cast<float>(beta), static_cast<float>(1.0 - beta), static_cast<float>(rho),
                  static_cast<float>(clip), pointer<float>(gradient), pointer<float>(ahead), pointer<float>(other),
                  sam_step_arguments(weights, gradient, f32, correction, momentum_buffer, lr, weight_decay, momentum),
                  pointer<float>(losses)}));
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fedsynsam: compiled operations on raw pointers";
#ifdef FEDSYNSAM_CUDA
  m.attr("cuda_built") = true;
#else
  m.attr("cuda_built") = false;
#endif
  m.def("prefer_huge_pages",
        [](uintptr_t address, int64_t bytes) { fedsynsam::prefer_huge_pages(pointer<void>(address), bytes); });
  // Every other binding that takes pointers releases the GIL: pointers stay valid because the caller holds the tensors.
  // --- topk, index_coding ---
  bind_topk(m);
  // --- quantize, aggregate ---
  bind_quantize(m);
  bind_aggregate(m);
  // --- sam ---
  bind_sam(m);
  // --- network ---
  bind_network(m);
#ifdef FEDSYNSAM_CUDA
  bind_cuda(m);
#endif
}

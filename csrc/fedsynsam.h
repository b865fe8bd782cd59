// Declarations of the compiled operations, grouped by operation. Pointers are uintptr_t at the Python border
// (see bindings.cpp) and typed here. Every function is row-batched: `rows` rows of `n` contiguous elements.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fedsynsam {

#ifdef FEDSYNSAM_CUDA
// Every function that ends in _cuda launches on its `stream` (a cudaStream_t) without waiting, and returns 0 or a code
// that this explains.
const char* cuda_error(int code);
#endif

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

#ifdef FEDSYNSAM_CUDA
// `scratch` is of topk_cuda_scratch(rows, n, chunk) words of 16-byte aligned memory; chunk = n for topk.
int64_t topk_cuda_scratch(int64_t rows, int64_t n, int64_t chunk);
int topk_cuda(const TopKArguments& args, int64_t k, uint32_t* scratch, void* stream);
int chunk_topk_cuda(const TopKArguments& args, int64_t chunk, int64_t k_chunk, int64_t k_tail, uint32_t* scratch,
                    void* stream);

int encode_indices_cuda(const int32_t* indices, int64_t rows, int64_t k, int64_t n, uint32_t* words, void* stream);
// `counts` is scratch of rows * decode_indices_cuda_counts(n, k) words.
int64_t decode_indices_cuda_counts(int64_t n, int64_t k);
int decode_indices_cuda(const uint32_t* words, int64_t rows, int64_t n, int64_t k, uint32_t* counts, int32_t* indices,
                        bool* valid, void* stream);
#endif

// --- quantize, aggregate ---

enum class Norm : int { max = 0, l2 = 1 };
enum class Rounding : int { stochastic = 0, nearest = 1 };

// How values become codes; shared by quantize, dequantize and aggregate_codes.
struct Coding {
  int bits;        // 1, 2, 4 or 8
  int64_t bucket;  // values a scale, a power of two from 8 to 65536
};

struct QuantizeArgs {
  const void* update;  // [rows, n] of `dtype`
  Dtype dtype;
  const float* residual;  // [rows, n], or null
  const int64_t* seeds;   // [rows]
  int64_t rows, n;
  Coding coding;
  Norm norm;
  Rounding rounding;
  uint8_t* codes;       // [rows, buckets * bucket * bits / 8]
  float* scales;        // [rows, buckets]
  float* new_residual;  // [rows, n], or null with residual
  bool* nonfinite;      // [rows]
};

void quantize_cpu(const QuantizeArgs& args, int threads);

void dequantize_cpu(const uint8_t* codes, const float* scales, int64_t rows, int64_t n, Coding coding, float* out,
                    int threads);

// One payload of a sum: `count` ascending indices and as many values.
struct SparsePayload {
  const int32_t* indices;
  const float* values;
  int64_t count;
};

struct CodesPayload {
  const uint8_t* codes;
  const float* scales;
};

// out[n] = (accumulate ? out : 0) + sum of weight * payload, payload after payload. Indices outside [0, n) are skipped.
void aggregate_sparse_cpu(const SparsePayload* payloads, const float* weights, int64_t count, int64_t n,
                          bool accumulate, float* out, int threads);

void aggregate_codes_cpu(const CodesPayload* payloads, const float* weights, int64_t count, int64_t n, Coding coding,
                         bool accumulate, float* out, int threads);

#ifdef FEDSYNSAM_CUDA
int quantize_cuda(const QuantizeArgs& args, void* stream);
int dequantize_cuda(const uint8_t* codes, const float* scales, int64_t rows, int64_t n, Coding coding, float* out,
                    void* stream);
// `payloads` is an array in host memory, of addresses on the device; the others are on the device.
int aggregate_codes_cuda(const CodesPayload* payloads, const float* weights, int64_t count, int64_t n, Coding coding,
                         bool accumulate, float* out, void* stream);
int aggregate_sparse_cuda(const SparsePayload* payloads, const float* weights, int64_t count, int64_t n,
                          bool accumulate, float* out, void* stream);
#endif

// --- sam ---
// Where the perturbation comes from: the gradient, or beta * synthetic + keep * gradient (synthetic not null).
struct SamDirection {
  const void* gradient;
  const void* synthetic;  // of the gradient's dtype, or null
  Dtype dtype;
  float beta;
  float keep;  // 1 - beta, rounded once from float64
  bool adaptive;
};

// One step in place: u = g + weight_decay * w [+ correction]; [buffer = momentum * buffer + u, u = buffer]; w -= lr *
// u.
struct SamStep {
  float* weights;
  const void* gradient;
  Dtype dtype;
  const float* correction;  // or null
  float* momentum_buffer;   // or null: no momentum
  float lr;
  float weight_decay;
  float momentum;
};

void sam_norm_cpu(const float* weights, const SamDirection& from, int64_t rows, int64_t n, float* norm, int threads);
// `norm` may be null: it is computed here then.
void sam_perturb_cpu(const float* weights, const SamDirection& from, int64_t rows, int64_t n, float rho,
                     const float* norm, float* out, int threads);
void sam_step_cpu(const SamStep& arguments, int64_t rows, int64_t n, int threads);

#ifdef FEDSYNSAM_CUDA
// `partials` is scratch of rows * sam_cuda_partials(n) doubles.
int64_t sam_cuda_partials(int64_t n);
int sam_norm_cuda(const float* weights, const SamDirection& from, int64_t rows, int64_t n, double* partials,
                  float* norm, void* stream);
// `norm` may be null: it is computed with the help of `partials` then, which is not read otherwise.
int sam_perturb_cuda(const float* weights, const SamDirection& from, int64_t rows, int64_t n, float rho,
                     const float* norm, double* partials, float* out, void* stream);
int sam_step_cuda(const SamStep& arguments, int64_t rows, int64_t n, void* stream);
#endif

// --- network ---
constexpr int kImageLanes = 16;  // images in a block

// y = ReLU(max_pool2d(conv2d(x, weight, bias), 2)): no padding, stride 1, kernels of 3x3 or 5x5. Of a block of images,
// the image innermost: x [inputs, height, width, lanes], y [outputs, pooled_height, pooled_width, lanes], all aligned
// to 64 bytes; weight [outputs, inputs, kernel, kernel] and bias [outputs] are plain. `codes`, as y, says where in its
// window each maximum was (the first of equal ones), or that ReLU made it zero.
struct ConvolutionShape {
  int64_t inputs, height, width, outputs, kernel;

  int64_t pooled_height() const { return (height - kernel + 1) / 2; }
  int64_t pooled_width() const { return (width - kernel + 1) / 2; }
  // Of what is pooled: without an odd last row or column.
  int64_t rows() const { return 2 * pooled_height(); }
  int64_t columns() const { return 2 * pooled_width(); }
  // Floats of a block before, between and after convolution and pooling, and of the weights.
  int64_t image() const { return inputs * height * width * kImageLanes; }
  int64_t unpooled() const { return outputs * rows() * columns() * kImageLanes; }
  int64_t pooled() const { return outputs * pooled_height() * pooled_width() * kImageLanes; }
  int64_t weights() const { return outputs * inputs * kernel * kernel; }
};

// A classifier of convolutions (each with pooling and ReLU, as above) and then dense layers with ReLU between them. Its
// weights are flat: weight and bias of each layer in order. CPU only; sums are those of no other backend, but the same
// for every number of threads.
struct Network {
  int64_t channels, height, width;             // of an image
  std::vector<ConvolutionShape> convolutions;  // the first of which takes images
  std::vector<int64_t> widths;                 // of what enters the dense layers, of each hidden one, and the classes

  int64_t parameters() const;
};
// Images as they are stored, [count, pixels, channels], and each channel's shift and scale: a value stands for
// (stored - shift) / scale.
struct StoredImages {
  const uint8_t* bytes;
  int64_t count, pixels, channels;
  const float* shift;
  const float* scale;

  // What each value stands for, [channels, 256], as PyTorch computes it: one subtraction, one division.
  std::vector<float> table() const;
  // Whether there are images at all of these.
  bool have(const int64_t* indices, int64_t number) const;
};
// `out` [indices, pixels, channels] gets what the images stand for; false, and nothing, if an index is out of range.
bool gather_images(const StoredImages& stored, const int64_t* indices, int64_t count, float* out);

// Images are read through strides (of image, channel, row, column) or, where `stored` is not null, are those of it at
// `indices` [count], with `table` what it stands for. Either `labels` or `targets` is given; `share` [count] is the
// weight of each loss, 1 / count where it is null.
struct NetworkBatch {
  const float* images;
  int64_t strides[4];
  int64_t count;
  const int64_t* labels;  // [count], classes
  const float* targets;   // [count, classes], soft labels
  const float* share;
  const StoredImages* stored = nullptr;
  const float* table = nullptr;
  const int64_t* indices = nullptr;
};
// Each returns false if a label is no class.
//
// Writes the gradient of the mean cross-entropy in the weights; `loss` is that mean.
bool network_gradient(const Network& network, const float* weights, const NetworkBatch& batch, float* gradient,
                      float* loss, int threads);
// Writes the gradients of <direction, that gradient>, unless null: in the weights (a product with the Hessian), in the
// images [count, channels, height, width], and in the soft labels [count, classes].
struct NetworkSecond {
  float* in_weights;
  float* in_images;
  float* in_targets;
};
bool network_second(const Network& network, const float* weights, const float* direction, const NetworkBatch& batch,
                    const NetworkSecond& out, int threads);
// The number of right predictions (of `labels`), and the sum of the losses.
bool network_evaluate(const Network& network, const float* weights, const NetworkBatch& batch, int64_t* right,
                      float* loss);

// A client's local steps, one thread: for each batch of indices w' = w + rho d / |d|, or w where nothing says what d
// is, then the gradient at w', then sam_step. d is `given` [P], or the gradient at w of `shared`, or that of the step's
// own batch (`own`), or beta times the first or second plus `keep` times the third.
struct NetworkSteps {
  StoredImages images;
  const int64_t* labels;   // of all images
  const int64_t* indices;  // [steps, batch]
  int64_t steps, batch;
  const float* given;          // or null
  const NetworkBatch* shared;  // or null
  bool own;
  float beta, keep, rho;
  float clip;       // a gradient at w' that is longer is shortened to this length; infinity: never
  float* gradient;  // [P], which `step` takes
  float* ahead;     // [P], for w'
  float* other;     // [P], for the gradient of `shared`
  SamStep step;
  float* losses;  // [steps]
};
enum class Wrong : int { nothing = 0, label = 1, index = 2 };  // if not nothing, only some steps were made, or none
Wrong network_steps(const Network& network, const NetworkSteps& work);

// The instruction sets that these can use here, best first; and, for tests and benchmarks, the choice of one in this
// process (false if it is not among them). Their results differ by rounding.
std::vector<std::string> network_instruction_sets();
bool network_select_instruction_set(const std::string& name);

}  // namespace fedsynsam

// topk and chunk_topk on the CPU: see kernels/reference/topk.py for the contract.
//
// Rows are cut into pieces (a row, or its chunks), which threads take in turn; when there are few long pieces, the
// threads share each of them instead. A row that is not finite is put right afterwards.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/large_output.h"
#include "cpu/parallel.h"
#include "cpu/topk_piece.h"

namespace fedsynsam {
namespace topk {
namespace {

constexpr int64_t kSerial = 65536;  // below this many elements threads cost more than they give
constexpr int64_t kBatch = 65536;   // elements that a thread takes at a time

void flag(bool* nonfinite) { __atomic_store_n(nonfinite, true, __ATOMIC_RELAXED); }

// Each piece on one thread.
void emit_side_by_side(const TopKArguments& args, const Pieces& pieces, Store store, int threads) {
  std::vector<std::unique_ptr<Scratch>> scratch(static_cast<size_t>(threads));
  const int64_t cached = std::min(pieces.longest(), kCachedPiece);
  for (auto& one : scratch) one = std::make_unique<Scratch>(cached);
  const int64_t batch = std::max<int64_t>(1, kBatch / pieces.length);
  parallel_for(args.rows * pieces.per_row(), threads, batch, [&](int64_t i, int thread) {
    const Piece piece = pieces.at(i);
    const bool finite = piece.count <= kCachedPiece
                            ? emit_cached(args, piece, store, *scratch[static_cast<size_t>(thread)])
                            : emit_streamed(args, piece, store, 1);
    if (!finite) flag(args.nonfinite + piece.row);
  });
}

// One piece after the other, each shared by all threads.
void emit_in_turn(const TopKArguments& args, const Pieces& pieces, Store store, int threads) {
  for (int64_t i = 0; i < args.rows * pieces.per_row(); ++i) {
    const Piece piece = pieces.at(i);
    if (!emit_streamed(args, piece, store, threads)) flag(args.nonfinite + piece.row);
  }
}

// Nothing of the row is emitted, and its residual is as it was.
void undo_row(const TopKArguments& args, int64_t row, int64_t k) {
  float* target = args.new_residual + row * args.n;
  if (args.residual) {
    std::copy_n(args.residual + row * args.n, args.n, target);
  } else {
    std::fill_n(target, args.n, 0.0f);
  }
  for (int64_t j = 0; j < k; ++j) args.indices[row * k + j] = static_cast<int32_t>(j);
  std::fill_n(args.values + row * k, k, 0.0f);
}

void emit_all(const TopKArguments& args, const Pieces& pieces) {
  std::fill_n(args.nonfinite, args.rows, false);
  const int64_t total = args.rows * args.n;
  if (total == 0) return;
  const int threads = total < kSerial ? 1 : std::max(1, args.threads);
  const Store store = is_large_output(args.new_residual, total) ? Store::streaming : Store::plain;
  if (std::min(pieces.length, args.n) > kCachedPiece && args.rows * pieces.per_row() < 2 * threads) {
    emit_in_turn(args, pieces, store, threads);
  } else {
    emit_side_by_side(args, pieces, store, threads);
  }
  for (int64_t row = 0; row < args.rows; ++row) {
    if (args.nonfinite[row]) undo_row(args, row, pieces.emitted_per_row());
  }
}

}  // namespace
}  // namespace topk

void topk_cpu(const TopKArguments& args, int64_t k) { topk::emit_all(args, {args.n, args.n, k, 0}); }

void chunk_topk_cpu(const TopKArguments& args, int64_t chunk, int64_t k_chunk, int64_t k_tail) {
  topk::emit_all(args, {args.n, chunk, k_chunk, k_tail});
}

std::vector<std::string> topk_instruction_sets() { return topk::instruction_sets(); }

bool topk_select_instruction_set(const std::string& name) { return topk::select_instruction_set(name); }

}  // namespace fedsynsam

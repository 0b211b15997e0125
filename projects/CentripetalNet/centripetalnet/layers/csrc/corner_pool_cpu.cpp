// Launches the CPU kernels of corner pooling on tensors, in parallel.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "operators.h"
#include "scan_layout.h"

namespace centripetalnet {
namespace {

// Growing buffer, aligned for vectors of every instruction set.
class AlignedBuffer {
 public:
  // Uninitialised array of `count` values; the next call invalidates it.
  template <typename Value>
  Value* array(int64_t count) {
    const size_t lines = count * sizeof(Value) / sizeof(Line) + 1;
    if (lines > lines_.size()) {
      lines_.resize(lines);
    }
    return reinterpret_cast<Value*>(lines_.data());
  }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<Line> lines_;
};

// State that kernels keep between rows, and between the two passes of backward.
struct Scratch {
  AlignedBuffer state, marks;
};

}  // namespace
}  // namespace centripetalnet

#define CENTRIPETALNET_KERNELS "corner_pool_cpu.h"
#include "foreach_cpu_capability.h"

namespace centripetalnet {
namespace {

using at::Tensor;

// Upper limit of a block's row, so that the state of its lanes stays in the L1 cache.
constexpr int64_t kMaxBlockBytes = int64_t{1} << 14;
// Lower limit of a block's row: shorter pieces are slow to read.
constexpr int64_t kMinBlockBytes = int64_t{1} << 10;
// Calls body(block, scratch) in parallel for `count` blocks of about `block_elements` each. With
// `backwards`, every thread processes its blocks in reverse order.
template <typename Body>
void parallel_blocks(int64_t count, int64_t block_elements, bool backwards, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrainElements / block_elements);
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t i = begin; i < end; ++i) {
      body(backwards ? begin + end - 1 - i : i, scratch);
    }
  });
}

// The rows of adjacent lanes in a ScanLayout, cut into blocks.
struct RowBlocks {
  RowBlocks(const ScanLayout& layout, int64_t element_bytes)
      : inner(layout.inner),
        length(layout.length),
        lanes(block_lanes(layout, element_bytes)),
        per_row((layout.inner + lanes - 1) / lanes),
        count(layout.outer * per_row),
        first_row(layout.reverse ? (layout.length - 1) * layout.inner : 0),
        step(layout.reverse ? -layout.inner : layout.inner) {}

  // Offset of the block's first lane in the row where the scan starts.
  int64_t offset(int64_t block) const {
    return block / per_row * length * inner + block % per_row * lanes + first_row;
  }
  int64_t lanes_of(int64_t block) const {
    return std::min(lanes, inner - block % per_row * lanes);
  }

  // As many lanes as possible, but at least one block per thread.
  static int64_t block_lanes(const ScanLayout& layout, int64_t element_bytes) {
    const int64_t per_row = (at::get_num_threads() + layout.outer - 1) / layout.outer;
    const int64_t bytes = layout.inner * element_bytes / per_row;
    return std::min(
        layout.inner, std::clamp(bytes / 64 * 64, kMinBlockBytes, kMaxBlockBytes) / element_bytes);
  }

  int64_t inner, length, lanes, per_row, count, first_row, step;
};

// Contiguous scan lines, in blocks of 16 / element_bytes lines: one element of each fills 16 bytes.
struct LineBlocks {
  LineBlocks(const ScanLayout& layout, int64_t element_bytes)
      : length(layout.length),
        lines(16 / element_bytes),
        all_lines(layout.outer),
        count((layout.outer + lines - 1) / lines) {}

  int64_t offset(int64_t block) const { return block * lines * length; }
  int64_t lines_of(int64_t block) const { return std::min(lines, all_lines - block * lines); }

  int64_t length, lines, all_lines, count;
};

template <typename T>
void pool(const T* input, T* output, const ScanLayout& layout) {
  if (layout.inner > 1) {
    const RowBlocks blocks(layout, sizeof(T));
    const auto body = [&](int64_t block, Scratch& scratch) {
      const int64_t offset = blocks.offset(block);
      CENTRIPETALNET_DISPATCH(
          corner_pooling::pool_rows<T>, input + offset, output + offset, scratch, layout.length,
          blocks.lanes_of(block), blocks.step);
    };
    // Blocks are processed in the order in which the scan goes through memory.
    parallel_blocks(blocks.count, layout.length * blocks.lanes, layout.reverse, body);
  } else {
    const LineBlocks blocks(layout, sizeof(T));
    const auto body = [&](int64_t block, Scratch& scratch) {
      const int64_t offset = blocks.offset(block);
      CENTRIPETALNET_DISPATCH(
          corner_pooling::pool_lines<T>, input + offset, output + offset, scratch, layout.length,
          blocks.lines_of(block), layout.reverse);
    };
    parallel_blocks(blocks.count, layout.length * blocks.lines, false, body);
  }
}

template <typename T>
void unpool(const T* grad_output, const T* input, T* grad_input, const ScanLayout& layout) {
  if (layout.inner > 1) {
    const RowBlocks blocks(layout, sizeof(T));
    const auto body = [&](int64_t block, Scratch& scratch) {
      const int64_t offset = blocks.offset(block);
      CENTRIPETALNET_DISPATCH(
          corner_pooling::unpool_rows<T>, grad_output + offset, input + offset,
          grad_input + offset, scratch, layout.length, blocks.lanes_of(block), blocks.step);
    };
    // The second pass, which reads grad_output and writes grad_input, runs against the scan.
    parallel_blocks(blocks.count, layout.length * blocks.lanes, !layout.reverse, body);
  } else {
    const LineBlocks blocks(layout, sizeof(T));
    const auto body = [&](int64_t block, Scratch& scratch) {
      const int64_t offset = blocks.offset(block);
      CENTRIPETALNET_DISPATCH(
          corner_pooling::unpool_lines<T>, grad_output + offset, input + offset,
          grad_input + offset, scratch, layout.length, blocks.lines_of(block), layout.reverse);
    };
    parallel_blocks(blocks.count, layout.length * blocks.lines, false, body);
  }
}

Tensor corner_pool_cpu(const Tensor& input, int64_t direction) {
  Tensor output = corner_pool_meta(input, direction);
  if (input.numel() == 0) {
    return output;
  }
  // In float, float16 keeps its order and its values.
  if (input.scalar_type() == at::kHalf) {
    return output.copy_(corner_pool_cpu(input.to(at::kFloat), direction));
  }
  const Tensor dense = input.contiguous(input.suggest_memory_format());
  const ScanLayout layout = scan_layout(dense, direction);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, input.scalar_type(), "corner_pool_cpu", [&] {
    pool<scalar_t>(dense.const_data_ptr<scalar_t>(), output.mutable_data_ptr<scalar_t>(), layout);
  });
  return output;
}

Tensor corner_pool_backward_cpu(
    const Tensor& grad_output, const Tensor& input, int64_t direction) {
  Tensor grad_input = corner_pool_backward_meta(grad_output, input, direction);
  if (input.numel() == 0) {
    return grad_input;
  }
  if (input.scalar_type() == at::kHalf) {
    return grad_input.copy_(corner_pool_backward_cpu(
        grad_output.to(at::kFloat), input.to(at::kFloat), direction));
  }
  const auto format = input.suggest_memory_format();
  const Tensor dense = input.contiguous(format), dense_grad = grad_output.contiguous(format);
  const ScanLayout layout = scan_layout(dense, direction);
  AT_DISPATCH_FLOATING_TYPES_AND(
      at::kBFloat16, input.scalar_type(), "corner_pool_backward_cpu", [&] {
        unpool<scalar_t>(
            dense_grad.const_data_ptr<scalar_t>(), dense.const_data_ptr<scalar_t>(),
            grad_input.mutable_data_ptr<scalar_t>(), layout);
      });
  return grad_input;
}

}  // namespace

TORCH_LIBRARY_IMPL(centripetalnet, CPU, library) {
  library.impl("corner_pool", &corner_pool_cpu);
  library.impl("corner_pool_backward", &corner_pool_backward_cpu);
}

}  // namespace centripetalnet

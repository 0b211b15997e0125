// Launches the CPU kernels of corner pooling on tensors, in parallel.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "corner_pool.h"
#include "corner_pool_cpu.h"

namespace centripetalnet {
namespace {

using namespace cpu;
using at::Tensor;

// Long rows keep the hardware prefetcher on few streams.
constexpr int64_t kBlockLanes = 1024;
// Bytes of marks per block of lanes in the backward pass that stay in a second-level cache.
constexpr int64_t kMarkBytes = int64_t{1} << 18;
// Elements below which another thread costs more than it saves.
constexpr int64_t kGrainElements = int64_t{1} << 15;

// Calls body(begin, end) for ranges of blocks of about `block_elements` each, in parallel.
template <typename Body>
void parallel_blocks(int64_t blocks, int64_t block_elements, const Body& body) {
  at::parallel_for(0, blocks, std::max<int64_t>(1, kGrainElements / block_elements), body);
}

// The rows of adjacent lanes in a ScanLayout, cut into blocks.
struct RowBlocks {
  RowBlocks(const ScanLayout& layout, int64_t max_lanes)
      : inner(layout.inner),
        length(layout.length),
        lanes(std::min(max_lanes, layout.inner)),
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

  int64_t inner, length, lanes, per_row, count, first_row, step;
};

template <typename T>
void pool_all_rows(const T* input, T* output, const ScanLayout& layout) {
  const RowBlocks blocks(layout, kBlockLanes);
  parallel_blocks(blocks.count, layout.length * blocks.lanes, [&](int64_t begin, int64_t end) {
    std::vector<typename Lanes<T>::Key> best(vectors<T>(blocks.lanes));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t offset = blocks.offset(block);
      pool_rows(
          input + offset, output + offset, best.data(), layout.length, blocks.lanes_of(block),
          blocks.step);
    }
  });
}

template <typename T>
void unpool_all_rows(
    const T* grad_output, const T* input, T* grad_input, const ScanLayout& layout) {
  const int64_t max_lanes =
      std::clamp<int64_t>(kMarkBytes / sizeof(T) / layout.length, 64, kBlockLanes);
  const RowBlocks blocks(layout, max_lanes);
  parallel_blocks(blocks.count, layout.length * blocks.lanes, [&](int64_t begin, int64_t end) {
    const int64_t slots = vectors<T>(blocks.lanes);
    std::vector<typename Lanes<T>::Mask> starts(slots * layout.length);
    std::vector<typename Lanes<T>::Key> best(slots);
    std::vector<typename Lanes<T>::Sum> sums(slots);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t offset = blocks.offset(block);
      unpool_rows(
          grad_output + offset, input + offset, grad_input + offset, starts.data(), best.data(),
          sums.data(), layout.length, blocks.lanes_of(block), blocks.step);
    }
  });
}

template <typename T, bool kReverse>
void pool_all_lines(const T* input, T* output, const ScanLayout& layout) {
  constexpr int64_t kSize = Lanes<T>::kSize;
  const int64_t groups = vectors<T>(layout.outer);
  parallel_blocks(groups, layout.length * kSize, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t line = group * kSize;
      const int64_t offset = line * layout.length;
      pool_lines<T, kReverse>(
          input + offset, output + offset, Lines<T>{layout.length, layout.outer - line});
    }
  });
}

template <typename T, bool kReverse>
void unpool_all_lines(
    const T* grad_output, const T* input, T* grad_input, const ScanLayout& layout) {
  constexpr int64_t kSize = Lanes<T>::kSize;
  const int64_t groups = vectors<T>(layout.outer);
  parallel_blocks(groups, layout.length * kSize, [&](int64_t begin, int64_t end) {
    std::vector<typename Lanes<T>::Mask> starts(layout.length);
    for (int64_t group = begin; group < end; ++group) {
      const int64_t line = group * kSize;
      const int64_t offset = line * layout.length;
      unpool_lines<T, kReverse>(
          grad_output + offset, input + offset, grad_input + offset, starts.data(),
          Lines<T>{layout.length, layout.outer - line});
    }
  });
}

template <typename T>
void pool(const T* input, T* output, const ScanLayout& layout) {
  if (layout.inner > 1) {
    pool_all_rows(input, output, layout);
  } else if (layout.reverse) {
    pool_all_lines<T, true>(input, output, layout);
  } else {
    pool_all_lines<T, false>(input, output, layout);
  }
}

template <typename T>
void unpool(const T* grad_output, const T* input, T* grad_input, const ScanLayout& layout) {
  if (layout.inner > 1) {
    unpool_all_rows(grad_output, input, grad_input, layout);
  } else if (layout.reverse) {
    unpool_all_lines<T, true>(grad_output, input, grad_input, layout);
  } else {
    unpool_all_lines<T, false>(grad_output, input, grad_input, layout);
  }
}

Tensor corner_pool_cpu(const Tensor& input, int64_t direction) {
  check_input(input, direction);
  const auto format = input.suggest_memory_format();
  const Tensor dense = input.contiguous(format);
  Tensor output = at::empty_like(dense, dense.options().memory_format(format));
  if (input.numel() == 0) {
    return output;
  }
  const ScanLayout layout = scan_layout(dense, format, direction);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "corner_pool_cpu", [&] {
        pool<scalar_t>(
            dense.const_data_ptr<scalar_t>(), output.mutable_data_ptr<scalar_t>(), layout);
      });
  return output;
}

Tensor corner_pool_backward_cpu(
    const Tensor& grad_output, const Tensor& input, int64_t direction) {
  check_input(input, direction);
  check_grad_output(grad_output, input);
  const auto format = input.suggest_memory_format();
  const Tensor dense = input.contiguous(format);
  const Tensor dense_grad = grad_output.contiguous(format);
  Tensor grad_input = at::empty_like(dense, dense.options().memory_format(format));
  if (input.numel() == 0) {
    return grad_input;
  }
  const ScanLayout layout = scan_layout(dense, format, direction);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "corner_pool_backward_cpu", [&] {
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

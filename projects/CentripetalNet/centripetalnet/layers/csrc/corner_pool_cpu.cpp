// Launches the CPU kernels of corner pooling on tensors, in parallel.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "operators.h"
#include "scan_layout.h"

namespace centripetalnet {

// Integers of the size of a float, for its bits.
template <typename T>
using BitsOf = std::conditional_t<
    sizeof(T) == 8, int64_t, std::conditional_t<sizeof(T) == 4, int32_t, int16_t>>;

template <typename T>
constexpr BitsOf<T> kInfinity = 0x7f80;  // bfloat16
template <>
constexpr int16_t kInfinity<c10::Half> = 0x7c00;
template <>
constexpr int32_t kInfinity<float> = 0x7f800000;
template <>
constexpr int64_t kInfinity<double> = 0x7ff0000000000000;

template <typename T>
inline ValueOf<T> value_of(BitsOf<T> bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return static_cast<ValueOf<T>>(value);
}

template <typename T>
inline BitsOf<T> bits_of(ValueOf<T> value) {
  const T rounded = static_cast<T>(value);
  BitsOf<T> bits;
  std::memcpy(&bits, &rounded, sizeof(T));
  return bits;
}

}  // namespace centripetalnet

#define CENTRIPETALNET_KERNELS "corner_pool_cpu.h"
#include "foreach_cpu_capability.h"

namespace centripetalnet {
namespace {

using at::Tensor;

// Limits of a block's row: short pieces are slow to read, long states leave the L1 cache.
constexpr int64_t kMinRowBytes = int64_t{1} << 10, kMaxRowBytes = int64_t{1} << 14;
// Size of a block of contiguous lines, which stays in the L2 cache.
constexpr int64_t kLineBytes = int64_t{1} << 14;

int64_t lanes_per_block(const ScanLayout& layout, int64_t element_bytes) {
  if (layout.inner == 1) {
    const int64_t lines = kLineBytes / (layout.length * element_bytes);
    return std::clamp<int64_t>(lines, 8, 128) / 8 * 8;
  }
  // As many lanes as possible, but at least one block per thread.
  const int64_t blocks_per_row = (at::get_num_threads() + layout.outer - 1) / layout.outer;
  const int64_t bytes = layout.inner * element_bytes / blocks_per_row / 64 * 64;
  return std::min(layout.inner, std::clamp(bytes, kMinRowBytes, kMaxRowBytes) / element_bytes);
}

// Calls body(offset of the block's first element, lanes, state, rows) in parallel; the last two are
// buffers, see corner_pool_cpu.h. With `backwards`, a thread processes its blocks in reverse order.
template <typename T, typename Body>
void for_each_block(const ScanLayout& layout, bool backwards, const Body& body) {
  using Value = ValueOf<T>;
  using Bits = BitsOf<T>;
  // Contiguous lines are all lanes of one group.
  const bool contiguous = layout.inner == 1;
  const int64_t group_lanes = contiguous ? layout.outer : layout.inner;
  const int64_t lane_elements = contiguous ? layout.length : 1;
  const int64_t block_lanes = lanes_per_block(layout, sizeof(T));
  const int64_t group_blocks = (group_lanes + block_lanes - 1) / block_lanes;
  const int64_t count = contiguous ? group_blocks : layout.outer * group_blocks;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (layout.length * block_lanes));
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    // Tensors are aligned for vectors.
    const Tensor sums = at::empty({block_lanes}, c10::CppTypeToScalarType<Value>::value);
    const Tensor top = at::empty({block_lanes}, c10::CppTypeToScalarType<Bits>::value);
    const Tensor rows = at::empty(
        {contiguous ? 2 * layout.length * block_lanes : 0}, c10::CppTypeToScalarType<Bits>::value);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i;
      const int64_t group = block / group_blocks, lane = block % group_blocks * block_lanes;
      body(
          group * layout.length * layout.inner + lane * lane_elements,
          std::min(block_lanes, group_lanes - lane), top.mutable_data_ptr<Bits>(),
          sums.mutable_data_ptr<Value>(), rows.mutable_data_ptr<Bits>());
    }
  });
}

Tensor corner_pool_cpu(const Tensor& input, int64_t direction) {
  Tensor output = corner_pool_meta(input, direction);
  if (input.numel() == 0) {
    return output;
  }
  const Tensor dense = input.contiguous(input.suggest_memory_format());
  const ScanLayout layout = scan_layout(dense, direction);
  CENTRIPETALNET_DISPATCH_DTYPE(input, "corner_pool_cpu", [&] {
    using Bits = BitsOf<scalar_t>;
    const auto* const from = static_cast<const Bits*>(dense.const_data_ptr());
    auto* const to = static_cast<Bits*>(output.mutable_data_ptr());
    const auto pool = [&](int64_t offset, int64_t lanes, auto* top, auto*, auto* rows) {
      CENTRIPETALNET_DISPATCH(
          corner_pooling::pool<scalar_t>, from + offset, to + offset, top, rows, layout, lanes);
    };
    // Blocks are processed in the order in which the scan goes through memory.
    for_each_block<scalar_t>(layout, layout.reverse, pool);
  });
  return output;
}

Tensor corner_pool_backward_cpu(
    const Tensor& grad_output, const Tensor& input, int64_t direction) {
  Tensor grad_input = corner_pool_backward_meta(grad_output, input, direction);
  if (input.numel() == 0) {
    return grad_input;
  }
  const auto format = input.suggest_memory_format();
  const Tensor dense = input.contiguous(format), dense_grad = grad_output.contiguous(format);
  const ScanLayout layout = scan_layout(dense, direction);
  CENTRIPETALNET_DISPATCH_DTYPE(input, "corner_pool_backward_cpu", [&] {
    using Bits = BitsOf<scalar_t>;
    const auto* const grads = static_cast<const Bits*>(dense_grad.const_data_ptr());
    const auto* const from = static_cast<const Bits*>(dense.const_data_ptr());
    auto* const to = static_cast<Bits*>(grad_input.mutable_data_ptr());
    // The second pass, which reads grad_output and writes grad_input, runs against the scan.
    const auto unpool = [&](int64_t offset, int64_t lanes, auto* top, auto* sums, auto* rows) {
      CENTRIPETALNET_DISPATCH(
          corner_pooling::unpool<scalar_t>, grads + offset, from + offset, to + offset, top, sums,
          rows, layout, lanes);
    };
    for_each_block<scalar_t>(layout, !layout.reverse, unpool);
  });
  return grad_input;
}

}  // namespace

TORCH_LIBRARY_IMPL(centripetalnet, CPU, library) {
  library.impl("corner_pool", &corner_pool_cpu);
  library.impl("corner_pool_backward", &corner_pool_backward_cpu);
}

}  // namespace centripetalnet

// Shared by the CPU, CUDA and meta kernels of corner pooling.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace centripetalnet {

// Values of the operator's `direction` argument; corner_pool.py maps names to them.
enum class Direction : int64_t { kTop = 0, kBottom = 1, kLeft = 2, kRight = 3 };

// A dense 4-d tensor viewed as (outer, length, inner): scans run over `length`; the `inner`
// elements of one row are adjacent in memory. This covers both axes and both memory formats.
struct ScanLayout {
  int64_t outer;
  int64_t length;
  int64_t inner;
  bool reverse;  // the scan starts at the last row
};

inline void check_input(const at::Tensor& input, int64_t direction) {
  TORCH_CHECK_VALUE(
      input.dim() == 4, "corner_pool expects an input of shape (N, C, H, W), got ", input.dim(),
      " dimensions");
  TORCH_CHECK_TYPE(
      at::isFloatingType(input.scalar_type()),
      "corner_pool expects a floating point input, got ", input.scalar_type());
  TORCH_CHECK_VALUE(
      direction >= 0 && direction <= 3, "corner_pool expects a direction from 0 to 3, got ",
      direction);
}

inline void check_grad_output(const at::Tensor& grad_output, const at::Tensor& input) {
  TORCH_CHECK_VALUE(
      grad_output.sym_sizes() == input.sym_sizes(),
      "corner_pool_backward expects grad_output and input of one shape, got ",
      grad_output.sym_sizes(), " and ", input.sym_sizes());
  TORCH_CHECK_TYPE(
      grad_output.scalar_type() == input.scalar_type(),
      "corner_pool_backward expects grad_output and input of one dtype, got ",
      grad_output.scalar_type(), " and ", input.scalar_type());
  TORCH_CHECK_VALUE(
      grad_output.device() == input.device(),
      "corner_pool_backward expects grad_output and input on one device, got ",
      grad_output.device(), " and ", input.device());
}

// `input` must be dense in `format`.
inline ScanLayout scan_layout(
    const at::Tensor& input, at::MemoryFormat format, int64_t direction_index) {
  const auto direction = static_cast<Direction>(direction_index);
  const bool vertical = direction == Direction::kTop || direction == Direction::kBottom;
  const bool reverse = direction == Direction::kTop || direction == Direction::kLeft;
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
  if (format == at::MemoryFormat::ChannelsLast) {
    return vertical ? ScanLayout{n, h, w * c, reverse} : ScanLayout{n * h, w, c, reverse};
  }
  return vertical ? ScanLayout{n * c, h, w, reverse} : ScanLayout{n * c * h, w, 1, reverse};
}

}  // namespace centripetalnet

// Launches the CUDA kernels of corner pooling on tensors.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

#include "operators.h"
#include "corner_pool_kernel.cuh"

namespace centripetalnet {
namespace {

using namespace gpu;
using at::Tensor;

unsigned grid_size(const ScanLayout& layout) {
  const int64_t blocks = block_count(layout);
  TORCH_CHECK(
      blocks <= std::numeric_limits<int32_t>::max(), "corner_pool cannot pool ",
      layout.outer * layout.inner, " lines at once, at most ",
      int64_t{std::numeric_limits<int32_t>::max()} * kLines);
  return static_cast<unsigned>(blocks);
}

Tensor corner_pool_cuda(const Tensor& input, int64_t direction) {
  Tensor output = corner_pool_meta(input, direction);
  if (input.numel() == 0) {
    return output;
  }
  const c10::cuda::CUDAGuard device_guard(input.device());
  const auto format = input.suggest_memory_format();
  const Tensor dense = input.contiguous(format);
  const ScanLayout layout =
      scan_layout(dense, format == at::MemoryFormat::ChannelsLast, direction);
  const dim3 block(kLines, kSegments);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "corner_pool_cuda", [&] {
        const auto kernel = layout.inner == 1
            ? corner_pool_kernel<scalar_t, ValueOf<scalar_t>, true>
            : corner_pool_kernel<scalar_t, ValueOf<scalar_t>, false>;
        kernel<<<grid_size(layout), block, 0, stream>>>(
            dense.const_data_ptr<scalar_t>(), output.mutable_data_ptr<scalar_t>(), layout);
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return output;
}

Tensor corner_pool_backward_cuda(
    const Tensor& grad_output, const Tensor& input, int64_t direction) {
  Tensor grad_input = corner_pool_backward_meta(grad_output, input, direction);
  if (input.numel() == 0) {
    return grad_input;
  }
  const c10::cuda::CUDAGuard device_guard(input.device());
  const auto format = input.suggest_memory_format();
  const Tensor dense = input.contiguous(format), dense_grad = grad_output.contiguous(format);
  const ScanLayout layout =
      scan_layout(dense, format == at::MemoryFormat::ChannelsLast, direction);
  // int16 stands for uint16, which older versions of torch lack.
  const Tensor marks = at::empty({mark_count(layout)}, dense.options().dtype(at::kShort));
  const dim3 block(kLines, kSegments);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "corner_pool_backward_cuda", [&] {
        const auto kernel = layout.inner == 1
            ? corner_pool_backward_kernel<scalar_t, ValueOf<scalar_t>, true>
            : corner_pool_backward_kernel<scalar_t, ValueOf<scalar_t>, false>;
        kernel<<<grid_size(layout), block, 0, stream>>>(
            dense_grad.const_data_ptr<scalar_t>(), dense.const_data_ptr<scalar_t>(),
            grad_input.mutable_data_ptr<scalar_t>(),
            reinterpret_cast<Marks*>(marks.mutable_data_ptr<int16_t>()), layout);
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return grad_input;
}

}  // namespace

TORCH_LIBRARY_IMPL(centripetalnet, CUDA, library) {
  library.impl("corner_pool", &corner_pool_cuda);
  library.impl("corner_pool_backward", &corner_pool_backward_cuda);
}

}  // namespace centripetalnet

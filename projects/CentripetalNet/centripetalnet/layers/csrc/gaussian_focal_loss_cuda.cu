// Launches the CUDA kernels of the Gaussian focal loss on tensors.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "gaussian_focal_loss.h"
#include "gaussian_focal_loss_kernel.cuh"

namespace centripetalnet {
namespace {

using namespace gpu;
using at::Tensor;

template <typename T>
using ValueOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Enough blocks for any GPU, few enough for a fast sum of their partial sums.
constexpr int64_t kMaxBlocks = 1024;
constexpr int64_t kMaxImages = 65535;

// Both memory formats are read in memory order.
struct Launch {
  Launch(const Tensor& logits, at::MemoryFormat format)
      : layout{
            static_cast<uint32_t>(logits.size(1)), static_cast<uint32_t>(logits.size(2)),
            static_cast<uint32_t>(logits.size(3)), format == at::MemoryFormat::ChannelsLast} {
    const int64_t images = logits.size(0), cells = logits.numel() / images;
    // int32, as a thread's uint32 index may exceed the number of cells by a whole grid.
    TORCH_CHECK_VALUE(
        cells <= std::numeric_limits<int32_t>::max() && images <= kMaxImages,
        "gaussian_focal_loss takes at most ", kMaxImages, " images of ",
        std::numeric_limits<int32_t>::max(), " cells, got ", images, " of ", cells);
    const int64_t blocks = (cells + kLossThreads - 1) / kLossThreads;
    grid = dim3(
        static_cast<unsigned>(std::min(blocks, kMaxBlocks)), static_cast<unsigned>(images));
  }

  HeatmapLayout layout;
  dim3 grid;
};

Tensor loss_cuda(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double alpha,
    double beta) {
  check_loss_inputs(logits, bumps, plane_start, alpha, beta);
  const c10::cuda::CUDAGuard device_guard(logits.device());
  const auto dtype = loss_dtype(logits);
  if (logits.numel() == 0) {
    return at::empty({}, logits.options().dtype(dtype)).zero_();
  }
  const auto format = logits.suggest_memory_format();
  const Tensor dense = logits.contiguous(format);
  const Tensor bump_rows = bumps.contiguous(), starts = plane_start.contiguous();
  const Launch launch(dense, format);
  const Tensor partial_sums = at::empty(
      {static_cast<int64_t>(launch.grid.x) * launch.grid.y}, logits.options().dtype(at::kDouble));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, logits.scalar_type(), "gaussian_focal_loss_cuda", [&] {
        using Value = ValueOf<scalar_t>;
        gaussian_focal_loss_kernel<scalar_t, Value><<<launch.grid, kLossThreads, 0, stream>>>(
            dense.const_data_ptr<scalar_t>(),
            Bumps{bump_rows.const_data_ptr<int32_t>(), starts.const_data_ptr<int32_t>()},
            launch.layout,
            FocalExponents<Value>{static_cast<Value>(alpha), static_cast<Value>(beta)},
            partial_sums.mutable_data_ptr<double>());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return partial_sums.sum().to(dtype);
}

Tensor loss_backward_cuda(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& bumps, const Tensor& plane_start,
    double alpha, double beta) {
  check_loss_inputs(logits, bumps, plane_start, alpha, beta);
  check_grad_loss(grad_loss, logits);
  const c10::cuda::CUDAGuard device_guard(logits.device());
  const auto format = logits.suggest_memory_format();
  const Tensor dense = logits.contiguous(format);
  Tensor gradient = at::empty_like(dense, dense.options().memory_format(format));
  if (logits.numel() == 0) {
    return gradient;
  }
  const Tensor bump_rows = bumps.contiguous(), starts = plane_start.contiguous();
  const Launch launch(dense, format);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, logits.scalar_type(), "gaussian_focal_loss_backward_cuda", [&] {
        using Value = ValueOf<scalar_t>;
        gaussian_focal_loss_backward_kernel<scalar_t, Value>
            <<<launch.grid, kLossThreads, 0, stream>>>(
                grad_loss.const_data_ptr<Value>(), dense.const_data_ptr<scalar_t>(),
                Bumps{bump_rows.const_data_ptr<int32_t>(), starts.const_data_ptr<int32_t>()},
                launch.layout,
                FocalExponents<Value>{static_cast<Value>(alpha), static_cast<Value>(beta)},
                gradient.mutable_data_ptr<scalar_t>());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(centripetalnet, CUDA, library) {
  library.impl("gaussian_focal_loss", &loss_cuda);
  library.impl("gaussian_focal_loss_backward", &loss_backward_cuda);
}

}  // namespace centripetalnet

// Launches the CUDA kernels on tensors.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "corner_pool_kernel.cuh"
#include "gaussian_focal_loss_kernel.cuh"
#include "operators.h"

namespace centripetalnet {
namespace {

using namespace gpu;
using at::Tensor;

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

// ---- Corner pooling

dim3 grid_of(const ScanLayout& layout) {
  const int64_t blocks = block_count(layout);
  TORCH_CHECK(
      blocks <= kMaxInt, "corner_pool cannot pool ", layout.outer * layout.inner,
      " lines at once, at most ", kMaxInt * kLines);
  return dim3(static_cast<unsigned>(blocks));
}

Tensor corner_pool_cuda(const Tensor& input, int64_t direction) {
  Tensor output = corner_pool_meta(input, direction);
  if (input.numel() == 0) {
    return output;
  }
  const c10::cuda::CUDAGuard device_guard(input.device());
  const Tensor dense = input.contiguous(input.suggest_memory_format());
  const ScanLayout layout = scan_layout(dense, direction);
  const dim3 grid = grid_of(layout), block(kLines, kSegments);
  CENTRIPETALNET_DISPATCH_DTYPE(input, "corner_pool_cuda", [&] {
    using Value = ValueOf<scalar_t>;
    const auto kernel = layout.inner == 1 ? corner_pool_kernel<scalar_t, Value, true>
                                          : corner_pool_kernel<scalar_t, Value, false>;
    kernel<<<grid, block, 0, c10::cuda::getCurrentCUDAStream()>>>(
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
  const ScanLayout layout = scan_layout(dense, direction);
  // int16 stands for uint16, which older versions of torch lack.
  const Tensor marks = at::empty({mark_count(layout)}, dense.options().dtype(at::kShort));
  const dim3 grid = grid_of(layout), block(kLines, kSegments);
  CENTRIPETALNET_DISPATCH_DTYPE(input, "corner_pool_backward_cuda", [&] {
    using Value = ValueOf<scalar_t>;
    const auto kernel = layout.inner == 1 ? corner_pool_backward_kernel<scalar_t, Value, true>
                                          : corner_pool_backward_kernel<scalar_t, Value, false>;
    kernel<<<grid, block, 0, c10::cuda::getCurrentCUDAStream()>>>(
        dense_grad.const_data_ptr<scalar_t>(), dense.const_data_ptr<scalar_t>(),
        grad_input.mutable_data_ptr<scalar_t>(),
        reinterpret_cast<Marks*>(marks.mutable_data_ptr<int16_t>()), layout);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return grad_input;
}

// ---- Gaussian focal loss

// Contiguous tensors and the kernels' arguments.
struct Launch {
  Launch(const Tensor& logits, const Tensor& bumps, const Tensor& plane_start)
      : logits(logits.contiguous(logits.suggest_memory_format())),
        bump_rows(bumps.contiguous()),
        starts(plane_start.contiguous()) {
    const bool channels_last = logits.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
    const int64_t planes = channels_last ? logits.size(1) : 1;
    const int64_t cells = logits.size(2) * logits.size(3) * planes, count = logits.numel() / cells;
    // int32, as a thread's uint32 index may exceed the number of cells by a whole grid.
    TORCH_CHECK_VALUE(
        cells <= kMaxInt, "gaussian_focal_loss takes maps of at most ", kMaxInt, " cells, got ",
        cells);
    maps = {
        count, static_cast<uint32_t>(planes), static_cast<uint32_t>(logits.size(3)),
        static_cast<uint32_t>(cells),
        reinterpret_cast<const Bump*>(bump_rows.const_data_ptr<int32_t>()), bumps.size(0),
        starts.const_data_ptr<int32_t>()};
    const LossGrid of_maps(count, cells);
    grid = dim3(static_cast<unsigned>(of_maps.blocks), static_cast<unsigned>(of_maps.rows));
  }

  Tensor logits, bump_rows, starts;
  Heatmaps maps;
  dim3 grid;
  c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
};

Tensor loss_cuda(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double alpha,
    double beta) {
  Tensor loss = loss_meta(logits, bumps, plane_start, alpha, beta);
  if (logits.numel() == 0) {
    return loss.zero_();
  }
  const c10::cuda::CUDAGuard device_guard(logits.device());
  const Launch launch(logits, bumps, plane_start);
  const Tensor partial_sums = at::empty(
      {static_cast<int64_t>(launch.grid.x) * launch.grid.y}, logits.options().dtype(at::kDouble));
  CENTRIPETALNET_DISPATCH_DTYPE(logits, "gaussian_focal_loss_cuda", [&] {
    using Value = ValueOf<scalar_t>;
    gaussian_focal_loss_kernel<scalar_t, Value><<<launch.grid, kLossThreads, 0, launch.stream>>>(
        launch.logits.const_data_ptr<scalar_t>(), launch.maps, static_cast<Value>(alpha),
        static_cast<Value>(beta), partial_sums.mutable_data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return partial_sums.sum().to(loss.scalar_type());
}

Tensor loss_backward_cuda(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& bumps, const Tensor& plane_start,
    double alpha, double beta) {
  Tensor gradient = loss_backward_meta(grad_loss, logits, bumps, plane_start, alpha, beta);
  if (logits.numel() == 0) {
    return gradient;
  }
  const c10::cuda::CUDAGuard device_guard(logits.device());
  const Launch launch(logits, bumps, plane_start);
  CENTRIPETALNET_DISPATCH_DTYPE(logits, "gaussian_focal_loss_backward_cuda", [&] {
    using Value = ValueOf<scalar_t>;
    gaussian_focal_loss_backward_kernel<scalar_t, Value>
        <<<launch.grid, kLossThreads, 0, launch.stream>>>(
            grad_loss.const_data_ptr<Value>(), launch.logits.const_data_ptr<scalar_t>(),
            launch.maps, static_cast<Value>(alpha), static_cast<Value>(beta),
            gradient.mutable_data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return gradient;
}

// ---- Soft-NMS

// Every round depends on the one before: on the GPU each is several launches. Copying the candidates
// of some images takes less.
std::tuple<Tensor, Tensor> soft_nms_cuda(
    const Tensor& boxes, const Tensor& scores, const Tensor& classes, int64_t max_detections,
    bool gaussian, double sigma, double iou_threshold, double min_score) {
  soft_nms_meta(
      boxes, scores, classes, max_detections, gaussian, sigma, iou_threshold, min_score);
  const auto [keep, kept_scores] = soft_nms_cpu(
      boxes.cpu(), scores.cpu(), classes.cpu(), max_detections, gaussian, sigma, iou_threshold,
      min_score);
  return {keep.to(scores.device()), kept_scores.to(scores.device())};
}

}  // namespace

TORCH_LIBRARY_IMPL(centripetalnet, CUDA, library) {
  library.impl("corner_pool", &corner_pool_cuda);
  library.impl("corner_pool_backward", &corner_pool_backward_cuda);
  library.impl("gaussian_focal_loss", &loss_cuda);
  library.impl("gaussian_focal_loss_backward", &loss_backward_cuda);
  library.impl("soft_nms", &soft_nms_cuda);
}

}  // namespace centripetalnet

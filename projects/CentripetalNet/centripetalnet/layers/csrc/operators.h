// The operators, for the kernels of all devices.
//
// The meta kernels check the arguments, except for the numbers in tensors, and return uninitialised
// results in the memory format of the input. The other devices' kernels call them first.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include <tuple>
#include <type_traits>

// Calls a function with `scalar_t`, the dtype of a tensor with one of the supported dtypes.
#define CENTRIPETALNET_DISPATCH_DTYPE(tensor, name, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(                       \
      at::kHalf, at::kBFloat16, (tensor).scalar_type(), name, __VA_ARGS__)

namespace centripetalnet {

// With fewer elements per CPU thread, another thread costs more than it saves.
constexpr int64_t kGrainElements = int64_t{1} << 15;

// In which maxima, sums and losses of elements are computed.
template <typename T>
using ValueOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

at::Tensor corner_pool_meta(const at::Tensor& input, int64_t direction);
at::Tensor corner_pool_backward_meta(
    const at::Tensor& grad_output, const at::Tensor& input, int64_t direction);

at::Tensor loss_meta(
    const at::Tensor& logits, const at::Tensor& bumps, const at::Tensor& plane_start, double alpha,
    double beta);
at::Tensor loss_backward_meta(
    const at::Tensor& grad_loss, const at::Tensor& logits, const at::Tensor& bumps,
    const at::Tensor& plane_start, double alpha, double beta);

std::tuple<at::Tensor, at::Tensor> soft_nms_meta(
    const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& classes,
    c10::SymInt max_detections, bool gaussian, double sigma, double iou_threshold,
    double min_score);
// Also for other devices: the number of candidates is too small for their kernels.
std::tuple<at::Tensor, at::Tensor> soft_nms_cpu(
    const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& classes,
    int64_t max_detections, bool gaussian, double sigma, double iou_threshold, double min_score);

}  // namespace centripetalnet

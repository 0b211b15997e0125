// Shared by the kernels of the Gaussian focal loss.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <limits>

namespace centripetalnet {

// A bump is (plane, y, x, radius), plane = image * channels + channel.
constexpr int64_t kBumpSize = 4;

// dtype of the loss: double for double logits, else float.
inline at::ScalarType loss_dtype(const at::Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_loss_inputs(
    const at::Tensor& logits, const at::Tensor& bumps, const at::Tensor& plane_start, double alpha,
    double beta) {
  TORCH_CHECK_VALUE(
      logits.dim() == 4, "gaussian_focal_loss expects logits of shape (N, C, H, W), got ",
      logits.dim(), " dimensions");
  TORCH_CHECK_TYPE(
      at::isFloatingType(logits.scalar_type()),
      "gaussian_focal_loss expects floating point logits, got ", logits.scalar_type());
  TORCH_CHECK_VALUE(
      bumps.dim() == 2 && bumps.sym_size(1) == kBumpSize,
      "gaussian_focal_loss expects bumps of shape (M, 4), got ", bumps.sym_sizes());
  TORCH_CHECK_VALUE(
      plane_start.dim() == 1 &&
          plane_start.sym_size(0) == logits.sym_size(0) * logits.sym_size(1) + 1,
      "gaussian_focal_loss expects plane_start of shape (N * C + 1,) for logits of shape ",
      logits.sym_sizes(), ", got ", plane_start.sym_sizes());
  for (const at::Tensor& integers : {bumps, plane_start}) {
    TORCH_CHECK_TYPE(
        integers.scalar_type() == at::kInt,
        "gaussian_focal_loss expects bumps and plane_start in int32, got ",
        integers.scalar_type());
    TORCH_CHECK_VALUE(
        integers.device() == logits.device(),
        "gaussian_focal_loss expects logits, bumps and plane_start on one device, got ",
        integers.device(), " and ", logits.device());
  }
  for (const double exponent : {alpha, beta}) {
    // With a negative exponent the loss of a correct cell is unbounded.
    TORCH_CHECK_VALUE(
        exponent >= 0 && exponent <= std::numeric_limits<float>::max(),
        "gaussian_focal_loss expects alpha and beta to be finite and not negative, got ", alpha,
        " and ", beta);
  }
}

inline void check_grad_loss(const at::Tensor& grad_loss, const at::Tensor& logits) {
  TORCH_CHECK_VALUE(
      grad_loss.dim() == 0, "gaussian_focal_loss_backward expects a scalar gradient, got shape ",
      grad_loss.sym_sizes());
  TORCH_CHECK_TYPE(
      grad_loss.scalar_type() == loss_dtype(logits),
      "gaussian_focal_loss_backward expects a gradient in ", loss_dtype(logits), ", got ",
      grad_loss.scalar_type());
  TORCH_CHECK_VALUE(
      grad_loss.device() == logits.device(),
      "gaussian_focal_loss_backward expects grad_loss and logits on one device, got ",
      grad_loss.device(), " and ", logits.device());
}

}  // namespace centripetalnet

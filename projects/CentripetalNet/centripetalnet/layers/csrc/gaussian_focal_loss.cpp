// Schema, autograd and meta kernels of the Gaussian focal loss.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gaussian_focal_loss.h"

namespace centripetalnet {
namespace {

using at::Tensor;

Tensor call_loss(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double alpha,
    double beta) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("centripetalnet::gaussian_focal_loss", "")
          .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, double, double)>();
  return op.call(logits, bumps, plane_start, alpha, beta);
}

Tensor call_loss_backward(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& bumps, const Tensor& plane_start,
    double alpha, double beta) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("centripetalnet::gaussian_focal_loss_backward", "")
                             .typed<Tensor(
                                 const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                 double, double)>();
  return op.call(grad_loss, logits, bumps, plane_start, alpha, beta);
}

class GaussianFocalLoss : public torch::autograd::Function<GaussianFocalLoss> {
 public:
  static Tensor forward(
      torch::autograd::AutogradContext* context, const Tensor& logits, const Tensor& bumps,
      const Tensor& plane_start, double alpha, double beta) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Nothing of the size of the logits is kept but the logits themselves.
    context->save_for_backward({logits, bumps, plane_start});
    context->saved_data["alpha"] = alpha;
    context->saved_data["beta"] = beta;
    return call_loss(logits, bumps, plane_start, alpha, beta);
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list grad_outputs) {
    const auto saved = context->get_saved_variables();
    const double alpha = context->saved_data["alpha"].toDouble();
    const double beta = context->saved_data["beta"].toDouble();
    return {
        call_loss_backward(grad_outputs[0], saved[0], saved[1], saved[2], alpha, beta), Tensor(),
        Tensor(), Tensor(), Tensor()};
  }
};

Tensor loss_autograd(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double alpha,
    double beta) {
  return GaussianFocalLoss::apply(logits, bumps, plane_start, alpha, beta);
}

Tensor loss_meta(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double alpha,
    double beta) {
  check_loss_inputs(logits, bumps, plane_start, alpha, beta);
  return at::empty({}, logits.options().dtype(loss_dtype(logits)));
}

Tensor loss_backward_meta(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& bumps, const Tensor& plane_start,
    double alpha, double beta) {
  check_loss_inputs(logits, bumps, plane_start, alpha, beta);
  check_grad_loss(grad_loss, logits);
  return at::empty_like(logits, logits.options().memory_format(logits.suggest_memory_format()));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(centripetalnet, library) {
  library.def(
      "gaussian_focal_loss(Tensor logits, Tensor bumps, Tensor plane_start, float alpha, "
      "float beta) -> Tensor");
  library.def(
      "gaussian_focal_loss_backward(Tensor grad_loss, Tensor logits, Tensor bumps, "
      "Tensor plane_start, float alpha, float beta) -> Tensor");
}

TORCH_LIBRARY_IMPL(centripetalnet, Autograd, library) {
  library.impl("gaussian_focal_loss", &loss_autograd);
  // Without this a second derivative would silently be zero.
  library.impl("gaussian_focal_loss_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(centripetalnet, Meta, library) {
  library.impl("gaussian_focal_loss", &loss_meta);
  library.impl("gaussian_focal_loss_backward", &loss_backward_meta);
}

}  // namespace centripetalnet

// The operators: schemas, checks of the arguments, autograd. And the Python module.
#include <Python.h>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "operators.h"

namespace centripetalnet {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---- Checks of the arguments

Tensor corner_pool_meta(const Tensor& input, int64_t direction) {
  TORCH_CHECK_VALUE(
      input.dim() == 4, "corner_pool expects an input of shape (N, C, H, W), got ", input.dim(),
      " dimensions");
  TORCH_CHECK_TYPE(
      at::isFloatingType(input.scalar_type()),
      "corner_pool expects a floating point input, got ", input.scalar_type());
  TORCH_CHECK_VALUE(
      direction >= 0 && direction <= 3, "corner_pool expects a direction from 0 to 3, got ",
      direction);
  return at::empty_like(input, input.options().memory_format(input.suggest_memory_format()));
}

Tensor corner_pool_backward_meta(
    const Tensor& grad_output, const Tensor& input, int64_t direction) {
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
  return corner_pool_meta(input, direction);
}

Tensor loss_meta(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double alpha,
    double beta) {
  TORCH_CHECK_VALUE(
      logits.dim() == 4, "gaussian_focal_loss expects logits of shape (N, C, H, W), got ",
      logits.dim(), " dimensions");
  TORCH_CHECK_TYPE(
      at::isFloatingType(logits.scalar_type()),
      "gaussian_focal_loss expects floating point logits, got ", logits.scalar_type());
  TORCH_CHECK_VALUE(
      bumps.dim() == 2 && bumps.sym_size(1) == 4,
      "gaussian_focal_loss expects bumps of shape (M, 4), got ", bumps.sym_sizes());
  TORCH_CHECK_VALUE(
      plane_start.dim() == 1 &&
          plane_start.sym_size(0) == logits.sym_size(0) * logits.sym_size(1) + 1,
      "gaussian_focal_loss expects plane_start of shape (N * C + 1,) for logits of shape ",
      logits.sym_sizes(), ", got ", plane_start.sym_sizes());
  for (const Tensor& integers : {bumps, plane_start}) {
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
  const bool is_double = logits.scalar_type() == at::kDouble;
  return at::empty({}, logits.options().dtype(is_double ? at::kDouble : at::kFloat));
}

Tensor loss_backward_meta(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& bumps, const Tensor& plane_start,
    double alpha, double beta) {
  const auto dtype = loss_meta(logits, bumps, plane_start, alpha, beta).scalar_type();
  TORCH_CHECK_VALUE(
      grad_loss.dim() == 0, "gaussian_focal_loss_backward expects a scalar gradient, got shape ",
      grad_loss.sym_sizes());
  TORCH_CHECK_TYPE(
      grad_loss.scalar_type() == dtype, "gaussian_focal_loss_backward expects a gradient in ",
      dtype, ", got ", grad_loss.scalar_type());
  TORCH_CHECK_VALUE(
      grad_loss.device() == logits.device(),
      "gaussian_focal_loss_backward expects grad_loss and logits on one device, got ",
      grad_loss.device(), " and ", logits.device());
  return at::empty_like(logits, logits.options().memory_format(logits.suggest_memory_format()));
}

std::tuple<Tensor, Tensor> soft_nms_meta(
    const Tensor& boxes, const Tensor& scores, const Tensor& classes, c10::SymInt max_detections,
    bool /*gaussian*/, double sigma, double /*iou_threshold*/, double min_score) {
  TORCH_CHECK_VALUE(
      scores.dim() == 2, "soft_nms expects scores of shape (N, M), got ", scores.sym_sizes());
  const c10::SymInt images = scores.sym_size(0), count = scores.sym_size(1);
  TORCH_CHECK_VALUE(
      boxes.dim() == 3 && boxes.sym_size(0) == images && boxes.sym_size(1) == count &&
          boxes.sym_size(2) == 4,
      "soft_nms expects boxes of shape (N, M, 4) for scores of shape ", scores.sym_sizes(),
      ", got ", boxes.sym_sizes());
  TORCH_CHECK_VALUE(
      classes.sym_sizes() == scores.sym_sizes(),
      "soft_nms expects classes of the shape of scores, ", scores.sym_sizes(), ", got ",
      classes.sym_sizes());
  TORCH_CHECK_VALUE(
      boxes.device() == scores.device() && classes.device() == scores.device(),
      "soft_nms expects boxes, scores and classes on one device, got ", boxes.device(), ", ",
      scores.device(), " and ", classes.device());
  TORCH_CHECK_TYPE(
      classes.scalar_type() == at::kLong, "soft_nms expects classes in int64, got ",
      classes.scalar_type());
  const auto dtype = scores.scalar_type();
  TORCH_CHECK_TYPE(
      boxes.scalar_type() == dtype &&
          (dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat ||
           dtype == at::kDouble),
      "soft_nms expects boxes and scores of one floating point dtype, float16, bfloat16, float32 "
      "or float64, got ",
      boxes.scalar_type(), " and ", dtype);
  TORCH_CHECK_VALUE(
      max_detections >= 0, "soft_nms expects max_detections >= 0, got ", max_detections);
  TORCH_CHECK_VALUE(sigma > 0, "soft_nms expects sigma > 0, got ", sigma);
  TORCH_CHECK_VALUE(!std::isnan(min_score), "soft_nms expects min_score to be a number, got nan");
  const c10::SymInt shape[] = {images, max_detections.min(count)};
  return {
      at::empty_symint(shape, classes.options()), at::empty_symint(shape, scores.options())};
}

// ---- Autograd

namespace {

template <typename Function>
c10::TypedOperatorHandle<Function> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

class CornerPool : public torch::autograd::Function<CornerPool> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& input, int64_t direction) {
    static const auto pool = find<decltype(corner_pool_meta)>("centripetalnet::corner_pool");
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Only the input: scanning again in the backward kernel costs less memory traffic than an
    // int64 index per element.
    context->save_for_backward({input});
    context->saved_data["direction"] = direction;
    return pool.call(input, direction);
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    static const auto unpool =
        find<decltype(corner_pool_backward_meta)>("centripetalnet::corner_pool_backward");
    const Tensor input = context->get_saved_variables()[0];
    return {
        unpool.call(grad_outputs[0], input, context->saved_data["direction"].toInt()), Tensor()};
  }
};

class GaussianFocalLoss : public torch::autograd::Function<GaussianFocalLoss> {
 public:
  static Tensor forward(
      AutogradContext* context, const Tensor& logits, const Tensor& bumps,
      const Tensor& plane_start, double alpha, double beta) {
    static const auto loss = find<decltype(loss_meta)>("centripetalnet::gaussian_focal_loss");
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Nothing of the size of the logits is kept but the logits themselves.
    context->save_for_backward({logits, bumps, plane_start});
    context->saved_data["alpha"] = alpha;
    context->saved_data["beta"] = beta;
    return loss.call(logits, bumps, plane_start, alpha, beta);
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    static const auto gradient =
        find<decltype(loss_backward_meta)>("centripetalnet::gaussian_focal_loss_backward");
    const auto saved = context->get_saved_variables();
    const double alpha = context->saved_data["alpha"].toDouble();
    const double beta = context->saved_data["beta"].toDouble();
    return {
        gradient.call(grad_outputs[0], saved[0], saved[1], saved[2], alpha, beta), Tensor(),
        Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY(centripetalnet, library) {
  library.def("corner_pool(Tensor input, int direction) -> Tensor");
  library.def(
      "corner_pool_backward(Tensor grad_output, Tensor input, int direction) -> Tensor");
  library.def(
      "gaussian_focal_loss(Tensor logits, Tensor bumps, Tensor plane_start, float alpha, "
      "float beta) -> Tensor");
  library.def(
      "gaussian_focal_loss_backward(Tensor grad_loss, Tensor logits, Tensor bumps, "
      "Tensor plane_start, float alpha, float beta) -> Tensor");
  library.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor classes, SymInt max_detections, "
      "bool gaussian, float sigma, float iou_threshold, float min_score) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(centripetalnet, Autograd, library) {
  library.impl("corner_pool", [](const Tensor& input, int64_t direction) {
    return CornerPool::apply(input, direction);
  });
  library.impl(
      "gaussian_focal_loss", [](const Tensor& logits, const Tensor& bumps,
                                const Tensor& plane_start, double alpha, double beta) {
        return GaussianFocalLoss::apply(logits, bumps, plane_start, alpha, beta);
      });
  // Without these a second derivative would silently be zero.
  library.impl("corner_pool_backward", torch::autograd::autogradNotImplementedFallback());
  library.impl("gaussian_focal_loss_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(centripetalnet, Meta, library) {
  library.impl("corner_pool", &corner_pool_meta);
  library.impl("corner_pool_backward", &corner_pool_backward_meta);
  library.impl("gaussian_focal_loss", &loss_meta);
  library.impl("gaussian_focal_loss_backward", &loss_backward_meta);
  library.impl("soft_nms", &soft_nms_meta);
}

}  // namespace centripetalnet

// Loading the library registers the operators. The empty module makes `import centripetalnet._C`
// load it.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", "Compiled operators of centripetalnet.", -1, nullptr};
  return PyModule_Create(&definition);
}

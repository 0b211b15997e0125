// Schema, autograd and meta kernels of the corner pooling operator, and the Python module. The CPU
// and CUDA kernels are registered in their own files.
#include <Python.h>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "corner_pool.h"

namespace centripetalnet {
namespace {

using at::Tensor;

Tensor call_corner_pool(const Tensor& input, int64_t direction) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("centripetalnet::corner_pool", "")
                             .typed<Tensor(const Tensor&, int64_t)>();
  return op.call(input, direction);
}

Tensor call_corner_pool_backward(
    const Tensor& grad_output, const Tensor& input, int64_t direction) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("centripetalnet::corner_pool_backward", "")
                             .typed<Tensor(const Tensor&, const Tensor&, int64_t)>();
  return op.call(grad_output, input, direction);
}

class CornerPool : public torch::autograd::Function<CornerPool> {
 public:
  static Tensor forward(
      torch::autograd::AutogradContext* context, const Tensor& input, int64_t direction) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Only the input: scanning again in the backward kernel costs less memory traffic than an
    // int64 index per element.
    context->save_for_backward({input});
    context->saved_data["direction"] = direction;
    return call_corner_pool(input, direction);
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list grad_outputs) {
    const Tensor input = context->get_saved_variables()[0];
    const int64_t direction = context->saved_data["direction"].toInt();
    return {call_corner_pool_backward(grad_outputs[0], input, direction), Tensor()};
  }
};

Tensor corner_pool_autograd(const Tensor& input, int64_t direction) {
  return CornerPool::apply(input, direction);
}

Tensor corner_pool_meta(const Tensor& input, int64_t direction) {
  check_input(input, direction);
  return at::empty_like(input, input.options().memory_format(input.suggest_memory_format()));
}

Tensor corner_pool_backward_meta(
    const Tensor& grad_output, const Tensor& input, int64_t direction) {
  check_input(input, direction);
  check_grad_output(grad_output, input);
  return at::empty_like(input, input.options().memory_format(input.suggest_memory_format()));
}

}  // namespace

TORCH_LIBRARY(centripetalnet, library) {
  library.def("corner_pool(Tensor input, int direction) -> Tensor");
  library.def(
      "corner_pool_backward(Tensor grad_output, Tensor input, int direction) -> Tensor");
}

TORCH_LIBRARY_IMPL(centripetalnet, Autograd, library) {
  library.impl("corner_pool", &corner_pool_autograd);
  // Without this a second derivative would silently be zero.
  library.impl("corner_pool_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(centripetalnet, Meta, library) {
  library.impl("corner_pool", &corner_pool_meta);
  library.impl("corner_pool_backward", &corner_pool_backward_meta);
}

}  // namespace centripetalnet

// Loading the library registers the operators. The empty module makes `import centripetalnet._C`
// load it.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", "Compiled operators of centripetalnet.", -1, nullptr};
  return PyModule_Create(&definition);
}

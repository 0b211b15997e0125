// CPU kernels of the Gaussian focal loss for one instruction set, see corner_pool_cpu.h. They are
// plain loops over adjacent cells with the formula of gaussian_focal_loss_formula.h.
//
// For the usual exponent, 2, there is a copy of each loop without the other powers.
namespace centripetalnet::CENTRIPETALNET_CAPABILITY::focal_loss {

// Sum of the loss over `count` cells. In double, so that sums over millions of cells stay accurate.
template <typename T, typename Value>
double sum_of(const T* logits, const Value* weights, int64_t count, Value alpha) {
  const auto sum_with = [&](Value alpha) __attribute__((always_inline)) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
      sum += FocalCell<Value>(static_cast<Value>(logits[i]), weights[i], alpha).loss();
    }
    return sum;
  };
  return alpha == 2 ? sum_with(2) : sum_with(alpha);
}

// Gradient of sum_of times `scale`.
template <typename T, typename Value>
void gradient_of(
    const T* logits, const Value* weights, T* gradient, int64_t count, Value alpha, Value scale) {
  const auto fill_with = [&](Value alpha) __attribute__((always_inline)) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      const FocalCell<Value> cell(static_cast<Value>(logits[i]), weights[i], alpha);
      gradient[i] = static_cast<T>(scale * cell.gradient());
    }
  };
  alpha == 2 ? fill_with(2) : fill_with(alpha);
}

}  // namespace centripetalnet::CENTRIPETALNET_CAPABILITY::focal_loss

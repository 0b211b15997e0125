// Rows of the Gaussian focal loss, see foreach_cpu_capability.h.
//
// With p = sigmoid(x), q = 1 - p and e = exp(-|x|), all values are computed from e without
// cancellation: 1 / (1 + e) is the larger of p and q, with -log = log(1 + e); e / (1 + e) is the
// smaller, with -log = |x| + log(1 + e).
namespace centripetalnet {
namespace CENTRIPETALNET_CAPABILITY {
namespace {

typedef float Floats __attribute__((vector_size(CENTRIPETALNET_VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(CENTRIPETALNET_VECTOR_BYTES)));
typedef uint16_t HalfWords __attribute__((vector_size(CENTRIPETALNET_VECTOR_BYTES / 2)));

constexpr int kFloats = CENTRIPETALNET_VECTOR_BYTES / sizeof(float);

template <typename To, typename From>
inline To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits_of keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline Floats all(float value) { return Floats{} + value; }

inline Floats load_floats(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

inline Floats load_floats(const c10::BFloat16* from) {
  HalfWords words;
  std::memcpy(&words, from, sizeof(words));
  return bits_of<Floats>(__builtin_convertvector(words, Words) << 16);
}

inline Floats load_floats(const c10::Half* from) {
  Floats values;
  for (int lane = 0; lane < kFloats; ++lane) {
    values[lane] = static_cast<float>(from[lane]);
  }
  return values;
}

inline void store_floats(Floats values, float* to) { std::memcpy(to, &values, sizeof(values)); }

inline void store_floats(Floats values, c10::BFloat16* to) {
  const Words bits = bits_of<Words>(values);
  // Rounds to nearest, ties to even. NaN is set explicitly, as rounding could overflow its payload.
  const Words rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) >> 16;
  const Words nan = Words{} + 0x7fc0;
  const HalfWords words = __builtin_convertvector(values == values ? rounded : nan, HalfWords);
  std::memcpy(to, &words, sizeof(words));
}

inline void store_floats(Floats values, c10::Half* to) {
  for (int lane = 0; lane < kFloats; ++lane) {
    to[lane] = static_cast<c10::Half>(values[lane]);
  }
}

// exp(-a) for a >= 0, relative error 2e-7; 0 for a > 87, near the smallest normal float.
inline Floats exp_of_minus(Floats a) {
  const Floats limited = a > 87.0f ? all(87.0f) : a;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const Floats shifted = limited * -1.44269504f + 12582912.0f;
  const Floats whole = shifted - 12582912.0f;
  // ln 2 in two parts; the product of the first and `whole` is exact.
  const Floats rest = -limited - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats power = all(1.3948590e-3f);
  power = power * rest + 8.3751352e-3f;
  power = power * rest + 4.1666217e-2f;
  power = power * rest + 1.6666415e-1f;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  const Floats result = power * bits_of<Floats>((bits_of<Words>(shifted) + 127) << 23);
  // Exactly 0, as it may be multiplied by a logit of 1e38.
  return a > 87.0f ? Floats{} : result;
}

// log(1 + e) for e in [0, 1], relative error 2e-7: a Chebyshev fit of log(1 + e) / e.
inline Floats log_of_one_plus(Floats e) {
  Floats power = all(5.2534579e-3f);
  power = power * e - 2.9588507e-2f;
  power = power * e + 7.8361668e-2f;
  power = power * e - 1.3674770e-1f;
  power = power * e + 1.9111431e-1f;
  power = power * e - 2.4844369e-1f;
  power = power * e + 3.3319271e-1f;
  power = power * e - 4.9999502e-1f;
  power = power * e + 1.0f;
  return power * e;
}

// base^exponent; `minus_log` is -log(base) >= 0.
inline Floats power_of(Floats base, Floats minus_log, float exponent) {
  return exponent == 2.0f ? base * base : exp_of_minus(minus_log * exponent);
}

struct Sigmoid {
  __attribute__((always_inline)) explicit Sigmoid(Floats x) {
    const Floats magnitude = x < 0.0f ? -x : x;
    const Floats e = exp_of_minus(magnitude);
    const Floats larger = 1.0f / (1.0f + e);
    const Floats smaller = e * larger;
    p = x < 0.0f ? smaller : larger;
    q = x < 0.0f ? larger : smaller;
    const Floats small_part = log_of_one_plus(e);
    minus_log_p = small_part + (x < 0.0f ? magnitude : Floats{});
    minus_log_q = small_part + (x < 0.0f ? Floats{} : magnitude);
  }

  Floats p, q, minus_log_p, minus_log_q;
};

// (1 - t)^beta, the weight of a negative cell.
inline Floats quietened(Floats target, float beta) {
  const Floats rest = 1.0f - target;
  if (beta == 4.0f) {
    const Floats square = rest * rest;
    return square * square;
  }
  Floats weight;
  for (int lane = 0; lane < kFloats; ++lane) {
    weight[lane] = std::pow(rest[lane], beta);
  }
  return weight;
}

inline Floats loss_of_background(const Sigmoid& sigmoid, float alpha) {
  return sigmoid.minus_log_q * power_of(sigmoid.p, sigmoid.minus_log_p, alpha);
}

inline Floats gradient_of_background(const Sigmoid& sigmoid, float alpha) {
  return power_of(sigmoid.p, sigmoid.minus_log_p, alpha) *
         (sigmoid.p + alpha * (sigmoid.minus_log_q * sigmoid.q));
}

inline Floats loss_of(Floats x, Floats target, float alpha, float beta) {
  const Sigmoid sigmoid(x);
  const Floats positive =
      sigmoid.minus_log_p * power_of(sigmoid.q, sigmoid.minus_log_q, alpha);
  const Floats negative = loss_of_background(sigmoid, alpha) * quietened(target, beta);
  return target == 1.0f ? positive : negative;
}

inline Floats gradient_of(Floats x, Floats target, float alpha, float beta) {
  const Sigmoid sigmoid(x);
  const Floats positive = -power_of(sigmoid.q, sigmoid.minus_log_q, alpha) *
                          (sigmoid.q + alpha * (sigmoid.minus_log_p * sigmoid.p));
  const Floats negative = gradient_of_background(sigmoid, alpha) * quietened(target, beta);
  return target == 1.0f ? positive : negative;
}

// Sum of the loss over `count` logits; `targets` is null if all are zero.
template <typename T>
double loss_of_row(
    const T* logits, const float* targets, int64_t count, float alpha, float beta) {
  const auto loss_at = [&](const T* x, const float* target) {
    return target == nullptr ? loss_of_background(Sigmoid(load_floats(x)), alpha)
                             : loss_of(load_floats(x), load_floats(target), alpha, beta);
  };
  // Only short blocks are summed in float, so that sums over millions of cells stay accurate.
  constexpr int64_t kBlock = 64 * kFloats;
  double sum = 0;
  int64_t i = 0;
  while (i + kFloats <= count) {
    const int64_t block_end = std::min(i + kBlock, count);
    Floats sums{};
    for (; i + kFloats <= block_end; i += kFloats) {
      sums += loss_at(logits + i, targets == nullptr ? nullptr : targets + i);
    }
    for (int lane = 0; lane < kFloats; ++lane) {
      sum += sums[lane];
    }
  }
  if (i < count) {
    T last_logits[kFloats] = {};
    float last_targets[kFloats] = {};
    std::copy(logits + i, logits + count, last_logits);
    if (targets != nullptr) {
      std::copy(targets + i, targets + count, last_targets);
    }
    const Floats last = loss_at(last_logits, last_targets);
    for (int lane = 0; lane < count - i; ++lane) {
      sum += last[lane];
    }
  }
  return sum;
}

// Gradient of loss_of_row times `scale`.
template <typename T>
void gradient_of_row(
    const T* logits, const float* targets, T* gradient, int64_t count, float scale, float alpha,
    float beta) {
  const auto gradient_at = [&](const T* x, const float* target) {
    return scale * (target == nullptr
                        ? gradient_of_background(Sigmoid(load_floats(x)), alpha)
                        : gradient_of(load_floats(x), load_floats(target), alpha, beta));
  };
  int64_t i = 0;
  for (; i + kFloats <= count; i += kFloats) {
    store_floats(gradient_at(logits + i, targets == nullptr ? nullptr : targets + i), gradient + i);
  }
  if (i < count) {
    T last_logits[kFloats] = {}, last_gradient[kFloats];
    float last_targets[kFloats] = {};
    std::copy(logits + i, logits + count, last_logits);
    if (targets != nullptr) {
      std::copy(targets + i, targets + count, last_targets);
    }
    store_floats(gradient_at(last_logits, last_targets), last_gradient);
    std::copy_n(last_gradient, count - i, gradient + i);
  }
}

}  // namespace
}  // namespace CENTRIPETALNET_CAPABILITY
}  // namespace centripetalnet

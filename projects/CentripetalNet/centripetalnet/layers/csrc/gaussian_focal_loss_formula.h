// The Gaussian focal loss of one cell, for all devices.
//
// The weight of a cell stands for its target t: -1 at a peak, where t = 1, else (1 - t)^beta. The
// loss at a peak is that of a background cell with the negated logit z, so one formula is enough:
// with p = sigmoid(z) and q = 1 - p, the loss is -log(q) p^alpha |weight|.
//
// All values are computed from e = exp(-|z|) without cancellation: 1 / (1 + e) is the larger of p
// and q, with -log = log(1 + e); e / (1 + e) is the smaller, with -log = |z| + log(1 + e).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __device__
#define CENTRIPETALNET_INLINE __device__ inline
#else
// Loops over cells are vectorised only if everything in them is inlined.
#define CENTRIPETALNET_INLINE inline __attribute__((always_inline))
#endif

namespace centripetalnet {

template <typename Value>
CENTRIPETALNET_INLINE Value exp_of_minus(Value a) {
  return std::exp(-a);
}

template <typename Value>
CENTRIPETALNET_INLINE Value log_of_one_plus(Value e) {
  return std::log1p(e);
}

#ifndef __device__
// Unlike calls of the standard library, polynomials are vectorised.

// For a >= 0, relative error 2e-7; 0 for a > 87, near the smallest normal float.
CENTRIPETALNET_INLINE float exp_of_minus(float a) {
  const float limited = a > 87.0f ? 87.0f : a;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const float shifted = limited * -1.44269504f + 12582912.0f;
  const float whole = shifted - 12582912.0f;
  // ln 2 in two parts; the product of the first and `whole` is exact.
  const float rest = -limited - whole * 0.693359375f + whole * 2.12194440e-4f;
  float power = 1.3948590e-3f;
  power = power * rest + 8.3751352e-3f;
  power = power * rest + 4.1666217e-2f;
  power = power * rest + 1.6666415e-1f;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  // Exactly 0 for a > 87, as it may be multiplied by a logit of 1e38.
  bits = (bits + 127) << 23 & -static_cast<uint32_t>(!(a > 87.0f));
  float two_to_whole;
  std::memcpy(&two_to_whole, &bits, sizeof(bits));
  return power * two_to_whole;
}

// For e in [0, 1], relative error 2e-7: a Chebyshev fit of log(1 + e) / e.
CENTRIPETALNET_INLINE float log_of_one_plus(float e) {
  float power = 5.2534579e-3f;
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
#endif

template <typename Value>
struct FocalCell {
  CENTRIPETALNET_INLINE FocalCell(Value logit, Value weight, Value alpha)
      : weight(weight), alpha(alpha) {
    const Value z = weight < 0 ? -logit : logit;
    const Value magnitude = z < 0 ? -z : z;
    const Value e = exp_of_minus(magnitude), small_part = log_of_one_plus(e);
    const Value larger = 1 / (1 + e), smaller = e * larger;
    p = z < 0 ? smaller : larger;
    q = z < 0 ? larger : smaller;
    minus_log_q = small_part + (z > 0 ? z : 0);
    const Value minus_log_p = small_part + (z < 0 ? -z : 0);
    focus = alpha == 2 ? p * p : exp_of_minus(alpha * minus_log_p);
  }

  CENTRIPETALNET_INLINE Value loss() const {
    return minus_log_q * focus * (weight < 0 ? -weight : weight);
  }
  // With respect to the logit.
  CENTRIPETALNET_INLINE Value gradient() const {
    return focus * (p + alpha * (minus_log_q * q)) * weight;
  }

  Value weight, alpha, p, q, minus_log_q, focus;
};

// A row of the argument `bumps`: the peak's plane, image * channels + channel, and its cell; the
// radius of the window in cells.
struct Bump {
  int32_t plane, y, x, radius;
};

// The Gaussian of a bump, whose product over two axes is the target of a cell.
template <typename Value>
CENTRIPETALNET_INLINE Value gaussian_of(Value squared_distance, int64_t radius) {
  // In 64 bits, as a bump may have any radius on CUDA.
  const Value sigma = static_cast<Value>(2 * radius + 1) / 6;
  return std::exp(-squared_distance / (2 * sigma * sigma));
}

template <typename Value>
CENTRIPETALNET_INLINE Value weight_of_target(Value target, Value beta) {
  const Value rest = 1 - target, squared = rest * rest;
  return target == 1 ? Value{-1} : beta == 4 ? squared * squared : std::pow(rest, beta);
}

// Weight of a cell on the plane of a bump. With several bumps, the least weight counts.
template <typename Value>
CENTRIPETALNET_INLINE Value weight_of(const Bump& bump, int64_t y, int64_t x, Value beta) {
  const int64_t dy = y - bump.y, dx = x - bump.x, radius = bump.radius;
  if (dy < -radius || dy > radius || dx < -radius || dx > radius) {
    return 1;
  }
  const Value squared = static_cast<Value>(dy) * dy + static_cast<Value>(dx) * dx;
  return weight_of_target(gaussian_of(squared, radius), beta);
}

}  // namespace centripetalnet

// CUDA kernels of the Gaussian focal loss, independent of PyTorch. Of CUDA they use only shared
// memory and __syncthreads, so that tests can emulate them on the CPU.
//
// Threads stride over the cells of one image in memory order. For each cell, a thread checks all
// bumps of the cell's plane. The formulas are those of gaussian_focal_loss_cpu_kernels.h.
#pragma once

#include <cmath>
#include <cstdint>

namespace centripetalnet::gpu {

constexpr int kLossThreads = 256;

struct HeatmapLayout {
  uint32_t channels, height, width;
  bool channels_last;
};

// A bump is (plane, y, x, radius). Rows plane_start[i] to plane_start[i + 1] - 1 belong to plane i.
struct Bumps {
  const int32_t* rows;
  const int32_t* plane_start;
};

template <typename Value>
struct FocalExponents {
  Value alpha, beta;
};

template <typename Value>
__device__ inline Value target_at(
    const Bumps& bumps, const HeatmapLayout& layout, uint32_t image, uint32_t cell) {
  uint32_t channel, position;
  if (layout.channels_last) {
    channel = cell % layout.channels;
    position = cell / layout.channels;
  } else {
    position = cell % (layout.height * layout.width);
    channel = cell / (layout.height * layout.width);
  }
  const uint32_t plane = image * layout.channels + channel;
  const int32_t end = bumps.plane_start[plane + 1];
  Value target = 0;
  for (int32_t bump = bumps.plane_start[plane]; bump < end; ++bump) {
    const int32_t* row = bumps.rows + 4 * static_cast<int64_t>(bump);
    const int32_t dy = static_cast<int32_t>(position / layout.width) - row[1];
    const int32_t dx = static_cast<int32_t>(position % layout.width) - row[2];
    const int32_t radius = row[3];
    if (dy >= -radius && dy <= radius && dx >= -radius && dx <= radius) {
      const Value sigma = (2 * radius + 1) / Value{6};
      const Value squared = static_cast<Value>(dx) * dx + static_cast<Value>(dy) * dy;
      const Value value = std::exp(-squared / (2 * sigma * sigma));
      target = value > target ? value : target;
    }
  }
  return target;
}

template <typename Value>
struct FocalCell {
  __device__ explicit FocalCell(Value x) {
    const Value magnitude = x < 0 ? -x : x;
    const Value e = std::exp(-magnitude);
    const Value larger = 1 / (1 + e), smaller = e * larger, small_part = std::log1p(e);
    p = x < 0 ? smaller : larger;
    q = x < 0 ? larger : smaller;
    log_p = -small_part - (x < 0 ? magnitude : 0);
    log_q = -small_part - (x < 0 ? 0 : magnitude);
  }

  Value p, q, log_p, log_q;
};

template <typename Value>
__device__ inline Value power(Value base, Value log_base, Value exponent) {
  return exponent == 2 ? base * base : std::exp(exponent * log_base);
}

template <typename Value>
__device__ inline Value quietening(Value target, Value beta) {
  return target == 0 ? Value{1} : std::pow(1 - target, beta);
}

template <typename Value>
__device__ inline Value focal_loss(Value x, Value target, const FocalExponents<Value>& exponents) {
  const FocalCell<Value> cell(x);
  if (target == 1) {
    return -cell.log_p * power(cell.q, cell.log_q, exponents.alpha);
  }
  return -cell.log_q * power(cell.p, cell.log_p, exponents.alpha) *
         quietening(target, exponents.beta);
}

template <typename Value>
__device__ inline Value focal_gradient(
    Value x, Value target, const FocalExponents<Value>& exponents) {
  const FocalCell<Value> cell(x);
  if (target == 1) {
    return -power(cell.q, cell.log_q, exponents.alpha) *
           (cell.q - exponents.alpha * cell.log_p * cell.p);
  }
  return power(cell.p, cell.log_p, exponents.alpha) *
         (cell.p - exponents.alpha * cell.log_q * cell.q) * quietening(target, exponents.beta);
}

// blockIdx.y is the image. `partial_sums` has one entry per block.
template <typename T, typename Value>
__global__ void __launch_bounds__(kLossThreads) gaussian_focal_loss_kernel(
    const T* logits, Bumps bumps, HeatmapLayout layout, FocalExponents<Value> exponents,
    double* partial_sums) {
  const uint32_t cells = layout.channels * layout.height * layout.width;
  const uint32_t image = blockIdx.y;
  logits += static_cast<int64_t>(image) * cells;
  double sum = 0;
  for (uint32_t cell = blockIdx.x * kLossThreads + threadIdx.x; cell < cells;
       cell += gridDim.x * kLossThreads) {
    const Value target = target_at<Value>(bumps, layout, image, cell);
    sum += focal_loss(static_cast<Value>(logits[cell]), target, exponents);
  }
  __shared__ double sums[kLossThreads];
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kLossThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    partial_sums[image * gridDim.x + blockIdx.x] = sums[0];
  }
}

template <typename T, typename Value>
__global__ void __launch_bounds__(kLossThreads) gaussian_focal_loss_backward_kernel(
    const Value* grad_loss, const T* logits, Bumps bumps, HeatmapLayout layout,
    FocalExponents<Value> exponents, T* gradient) {
  const uint32_t cells = layout.channels * layout.height * layout.width;
  const uint32_t image = blockIdx.y;
  logits += static_cast<int64_t>(image) * cells;
  gradient += static_cast<int64_t>(image) * cells;
  const Value scale = *grad_loss;
  for (uint32_t cell = blockIdx.x * kLossThreads + threadIdx.x; cell < cells;
       cell += gridDim.x * kLossThreads) {
    const Value target = target_at<Value>(bumps, layout, image, cell);
    gradient[cell] = static_cast<T>(
        scale * focal_gradient(static_cast<Value>(logits[cell]), target, exponents));
  }
}

}  // namespace centripetalnet::gpu

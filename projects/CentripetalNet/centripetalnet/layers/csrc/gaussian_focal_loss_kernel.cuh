// CUDA kernels of the Gaussian focal loss, independent of PyTorch. Of CUDA they use only shared
// memory and __syncthreads, so that tests can emulate them on the CPU.
//
// A plane is the map of one image and channel, a cell one of its logits. A map is what is contiguous:
// a plane, or all planes of an image in channels-last format. Each row of blocks takes one map after
// the other, its threads stride over the map's cells. For each cell, a thread checks all bumps of the
// cell's plane; most planes have none.
#pragma once

#include <cstdint>

#include "gaussian_focal_loss_formula.h"

namespace centripetalnet::gpu {

constexpr int kLossThreads = 256;
// Enough blocks for any GPU, few enough for a fast sum of their partial sums.
constexpr int64_t kMaxBlocks = 1024;

// Bumps plane_start[i] to plane_start[i + 1] - 1 are those of plane i.
struct Heatmaps {
  int64_t count;    // of maps
  uint32_t planes;  // of one map
  uint32_t width, cells;
  const Bump* bumps;
  int64_t bump_count;
  const int32_t* plane_start;
};

// Blocks for `count` maps of `cells` each, and the rows of them.
struct LossGrid {
  LossGrid(int64_t count, int64_t cells) {
    const int64_t wanted = (cells + kLossThreads - 1) / kLossThreads;
    blocks = wanted < kMaxBlocks ? wanted : kMaxBlocks;
    rows = kMaxBlocks / blocks < count ? kMaxBlocks / blocks : count;
  }
  int64_t blocks, rows;
};

// Calls visit(index of a logit, weight) for this thread's cells.
template <typename Value, typename Visit>
__device__ inline void for_each_cell(const Heatmaps& maps, Value beta, const Visit& visit) {
  for (int64_t map = blockIdx.y; map < maps.count; map += gridDim.y) {
    const int32_t* const starts = maps.plane_start + map * maps.planes;
    for (uint32_t cell = blockIdx.x * kLossThreads + threadIdx.x; cell < maps.cells;
         cell += gridDim.x * kLossThreads) {
      const uint32_t plane = maps.planes == 1 ? 0 : cell % maps.planes;
      // The numbers are not checked before, as that would wait for the GPU.
      const int64_t begin = starts[plane] > 0 ? starts[plane] : 0;
      const int64_t end = starts[plane + 1] < maps.bump_count ? starts[plane + 1] : maps.bump_count;
      Value weight = 1;
      for (int64_t bump = begin; bump < end; ++bump) {
        const uint32_t position = cell / maps.planes;
        const Value other =
            weight_of(maps.bumps[bump], position / maps.width, position % maps.width, beta);
        weight = other < weight ? other : weight;
      }
      visit(map * maps.cells + cell, weight);
    }
  }
}

// `partial_sums` has one entry per block.
template <typename T, typename Value>
__global__ void __launch_bounds__(kLossThreads) gaussian_focal_loss_kernel(
    const T* logits, Heatmaps maps, Value alpha, Value beta, double* partial_sums) {
  double sum = 0;
  for_each_cell(maps, beta, [&](int64_t i, Value weight) {
    sum += FocalCell<Value>(static_cast<Value>(logits[i]), weight, alpha).loss();
  });
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
    partial_sums[blockIdx.y * gridDim.x + blockIdx.x] = sums[0];
  }
}

template <typename T, typename Value>
__global__ void __launch_bounds__(kLossThreads) gaussian_focal_loss_backward_kernel(
    const Value* grad_loss, const T* logits, Heatmaps maps, Value alpha, Value beta,
    T* gradient) {
  const Value scale = *grad_loss;
  for_each_cell(maps, beta, [&](int64_t i, Value weight) {
    const FocalCell<Value> cell(static_cast<Value>(logits[i]), weight, alpha);
    gradient[i] = static_cast<T>(scale * cell.gradient());
  });
}

}  // namespace centripetalnet::gpu

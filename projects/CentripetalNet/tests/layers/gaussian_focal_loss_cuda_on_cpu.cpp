// Runs the CUDA kernels of the Gaussian focal loss on the CPU and compares them with the formula
// on a dense target.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"

#include "gaussian_focal_loss_kernel.cuh"

using namespace centripetalnet;
using namespace centripetalnet::gpu;

bool is_close(double actual, double expected) {
  return std::abs(actual - expected) <= 1e-9 * std::max(1.0, std::abs(expected));
}

bool is_right(bool channels_last, unsigned blocks, double alpha, double beta) {
  constexpr int kImages = 2, kChannels = 3, kHeight = 11, kWidth = 17;
  constexpr int kCells = kChannels * kHeight * kWidth;
  // Fewer than there are maps in NCHW.
  constexpr unsigned kRowsOfBlocks = 2;
  // On plane 2 a radius whose double is no int32.
  const std::vector<Bump> rows = {
      {0, 2, 3, -1}, {1, 4, 9, 3}, {1, 5, 12, 2}, {2, 1, 1, INT32_MAX}, {5, 0, 16, 4}};
  // Ought to be 0, 1, 3, 4, 4, 4, 5: a kernel must not read before the first bump or after the last.
  const std::vector<int32_t> plane_start = {-7, 1, 3, 4, 4, 4, 1000};
  const unsigned planes = channels_last ? kChannels : 1;
  const Heatmaps maps{
      kImages * kChannels / planes, planes, kWidth, kHeight * kWidth * planes, rows.data(),
      static_cast<int64_t>(rows.size()), plane_start.data()};

  std::mt19937 random(blocks);
  std::normal_distribution<double> normal(0, 3);
  std::vector<double> logits(kImages * kCells), gradient(logits.size()), expected(logits.size());
  const double grad_loss = 3;
  double expected_loss = 0;
  for (int image = 0; image < kImages; ++image) {
    for (int cell = 0; cell < kCells; ++cell) {
      const int channel = channels_last ? cell % kChannels : cell / (kHeight * kWidth);
      const int position = channels_last ? cell / kChannels : cell % (kHeight * kWidth);
      double target = 0;
      for (const auto& [plane, y, x, radius] : rows) {
        const int dy = position / kWidth - y, dx = position % kWidth - x;
        if (plane == image * kChannels + channel && std::abs(dy) <= radius &&
            std::abs(dx) <= radius) {
          const double sigma = (2.0 * radius + 1) / 6;
          target = std::max(target, std::exp(-(dx * dx + dy * dy) / (2 * sigma * sigma)));
        }
      }
      const double x = normal(random), p = 1 / (1 + std::exp(-x)), q = 1 - p;
      const double weight = std::pow(1 - target, beta);
      const int64_t at = image * kCells + cell;
      logits[at] = x;
      expected_loss += target == 1 ? -std::log(p) * std::pow(q, alpha)
                                   : -std::log(q) * std::pow(p, alpha) * weight;
      expected[at] = grad_loss *
          (target == 1 ? std::pow(q, alpha) * (alpha * p * std::log(p) - q)
                       : std::pow(p, alpha) * (p - alpha * q * std::log(q)) * weight);
    }
  }

  const dim3 grid{blocks, kRowsOfBlocks}, block{kLossThreads};
  std::vector<double> partial_sums(blocks * kRowsOfBlocks);
  cuda_on_cpu::launch(grid, block, [&] {
    gaussian_focal_loss_kernel<double, double>(
        logits.data(), maps, alpha, beta, partial_sums.data());
  });
  cuda_on_cpu::launch(grid, block, [&] {
    gaussian_focal_loss_backward_kernel<double, double>(
        &grad_loss, logits.data(), maps, alpha, beta, gradient.data());
  });
  double loss = 0;
  for (const double sum : partial_sums) {
    loss += sum;
  }
  bool right = is_close(loss, expected_loss);
  for (size_t i = 0; i < gradient.size(); ++i) {
    right = right && is_close(gradient[i], expected[i]);
  }
  if (!right) {
    std::printf("channels_last %d blocks %u is wrong: loss %g\n", channels_last, blocks, loss);
  }
  return right;
}

// Every GPU takes 2^31 - 1 blocks, 65,535 rows of them, and 1,024 threads per block.
bool grids_are_within_limits() {
  static_assert(kLossThreads <= 1024, "too many threads per block");
  constexpr int64_t kLargest = INT32_MAX;
  bool right = true;
  for (const int64_t count : {int64_t{1}, int64_t{6}, int64_t{480}, int64_t{1203 * 64}, kLargest}) {
    for (const int64_t cells : {int64_t{1}, int64_t{257}, int64_t{128 * 128}, kLargest}) {
      const LossGrid grid(count, cells);
      const bool is_used = grid.rows <= count && (grid.blocks - 1) * kLossThreads < cells;
      right = right && grid.blocks >= 1 && grid.rows >= 1 && grid.rows <= 65535 && is_used &&
          grid.blocks * grid.rows <= kMaxBlocks;
      // The index of a thread beyond the last cell is a uint32.
      right = right && cells + grid.blocks * kLossThreads <= int64_t{UINT32_MAX};
    }
  }
  return right;
}

// With an argument: only what finds a missing barrier.
int main(int count, char**) {
  if (count > 1) {
    return is_right(false, 1, 2, 4) ? 0 : 1;
  }
  bool right = grids_are_within_limits();
  for (const bool channels_last : {false, true}) {
    // 1 block: threads stride over several cells. 4 blocks: some threads are idle.
    for (const unsigned blocks : {1u, 4u}) {
      right = is_right(channels_last, blocks, 2, 4) && right;
      right = is_right(channels_last, blocks, 1.5, 3.5) && right;
    }
  }
  return right ? 0 : 1;
}

// The Gaussian focal loss on the CPU.
//
// Logits are processed in rows, which are contiguous: a row of one plane or, in channels-last
// format, of all planes of an image. The weights of a row's cells are computed into a buffer first.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "operators.h"
#include "gaussian_focal_loss_formula.h"

#define CENTRIPETALNET_KERNELS "gaussian_focal_loss_cpu.h"
#include "foreach_cpu_capability.h"

namespace centripetalnet {
namespace {

using at::Tensor;

// Checks the numbers in `bumps` and `plane_start`. Invalid indices would read outside the tensors.
void check_numbers(
    const Bump* bumps, int64_t count, const int32_t* plane_start, int64_t planes, int64_t height,
    int64_t width) {
  TORCH_CHECK_VALUE(
      plane_start[0] == 0 && plane_start[planes] == count &&
          std::is_sorted(plane_start, plane_start + planes + 1),
      "gaussian_focal_loss expects plane_start to rise from 0 to the number of bumps, ", count);
  for (int64_t plane = 0; plane < planes; ++plane) {
    for (int64_t i = plane_start[plane]; i < plane_start[plane + 1]; ++i) {
      const auto [plane_of_bump, y, x, radius] = bumps[i];
      TORCH_CHECK_VALUE(
          radius < 0 || (y >= 0 && y < height && x >= 0 && x < width),
          "gaussian_focal_loss expects bumps whose peaks are on the map of ", height, " x ", width,
          " cells, got one at y = ", y, ", x = ", x);
      TORCH_CHECK_VALUE(
          plane_of_bump >= 0 && plane_of_bump < planes,
          "gaussian_focal_loss expects the planes of bumps in [0, N * C) = [0, ", planes,
          "), got ", plane_of_bump);
      // Otherwise the channels-last format would give another result: it uses the bump's plane.
      TORCH_CHECK_VALUE(
          plane_of_bump == plane,
          "gaussian_focal_loss expects bumps sorted by plane, with plane_start to match, got bump ",
          i, " of plane ", plane_of_bump, " among those of plane ", plane);
    }
  }
}

// The Gaussian of each bump at distances from 0 to its radius, or to the end of the map.
template <typename Value>
std::vector<std::vector<Value>> profiles_of(const Bump* bumps, int64_t count, int64_t map_side) {
  std::vector<std::vector<Value>> profiles(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t radius = bumps[i].radius;
    for (Value distance = 0; distance <= std::min(radius, map_side); ++distance) {
      profiles[i].push_back(gaussian_of(distance * distance, radius));
    }
  }
  return profiles;
}

// Calls visit(row, its logits, their weights, their number) for all rows, in parallel.
template <typename T, typename Visit>
void for_each_row(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double beta,
    const Visit& visit) {
  using Value = ValueOf<T>;
  const auto format = logits.suggest_memory_format();
  const Tensor dense = logits.contiguous(format), bump_rows = bumps.contiguous();
  const Tensor starts = plane_start.contiguous();
  const auto* const data = dense.const_data_ptr<T>();
  const auto* const bump = reinterpret_cast<const Bump*>(bump_rows.const_data_ptr<int32_t>());
  const auto* const start = starts.const_data_ptr<int32_t>();
  const int64_t channels = logits.size(1), height = logits.size(2), width = logits.size(3);
  check_numbers(bump, bumps.size(0), start, logits.size(0) * channels, height, width);

  const auto profiles = profiles_of<Value>(bump, bumps.size(0), std::max(height, width));
  const auto power = static_cast<Value>(beta);
  const int64_t row_planes = format == at::MemoryFormat::ChannelsLast ? channels : 1;
  const int64_t length = width * row_planes;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / length);
  at::parallel_for(0, logits.numel() / length, grain, [&](int64_t begin, int64_t end) {
    std::vector<Value> weights(length);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first_plane = row / height * row_planes, y = row % height;
      std::fill(weights.begin(), weights.end(), Value{1});
      for (int64_t i = start[first_plane]; i < start[first_plane + row_planes]; ++i) {
        const auto [plane, center_y, center_x, radius] = bump[i];
        const int64_t distance = std::abs(y - center_y);
        if (distance > radius) {
          continue;
        }
        const Value* const profile = profiles[i].data();
        Value* const channel = weights.data() + plane - first_plane;
        const int64_t x_end = std::min(width, int64_t{center_x} + radius + 1);
        for (int64_t x = std::max<int64_t>(0, int64_t{center_x} - radius); x < x_end; ++x) {
          const Value target = profile[distance] * profile[std::abs(x - center_x)];
          Value& weight = channel[x * row_planes];
          weight = std::min(weight, weight_of_target(target, power));
        }
      }
      visit(row, data + row * length, weights.data(), length);
    }
  });
}

Tensor loss_cpu(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double alpha,
    double beta) {
  const Tensor loss = loss_meta(logits, bumps, plane_start, alpha, beta);
  if (logits.numel() == 0) {
    return loss.zero_();
  }
  // Of all rows, added in one order, whatever the number of threads. Channels-last has fewer.
  const Tensor sums = logits.new_zeros({logits.numel() / logits.size(3)}, at::kDouble);
  auto* const sum_of_row = sums.mutable_data_ptr<double>();
  CENTRIPETALNET_DISPATCH_DTYPE(logits, "gaussian_focal_loss_cpu", [&] {
    const auto power = static_cast<ValueOf<scalar_t>>(alpha);
    const auto sum = [&](int64_t row, const auto* x, const auto* weights, int64_t count) {
      sum_of_row[row] = CENTRIPETALNET_DISPATCH(focal_loss::sum_of, x, weights, count, power);
    };
    for_each_row<scalar_t>(logits, bumps, plane_start, beta, sum);
  });
  return loss.fill_(std::accumulate(sum_of_row, sum_of_row + sums.numel(), 0.0));
}

Tensor loss_backward_cpu(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& bumps, const Tensor& plane_start,
    double alpha, double beta) {
  const Tensor gradient = loss_backward_meta(grad_loss, logits, bumps, plane_start, alpha, beta);
  if (logits.numel() == 0) {
    return gradient;
  }
  CENTRIPETALNET_DISPATCH_DTYPE(logits, "gaussian_focal_loss_backward_cpu", [&] {
    using Value = ValueOf<scalar_t>;
    const auto power = static_cast<Value>(alpha), scale = grad_loss.item<Value>();
    auto* const to = gradient.mutable_data_ptr<scalar_t>();
    const auto fill = [&](int64_t row, const auto* x, const auto* weights, int64_t count) {
      CENTRIPETALNET_DISPATCH(
          focal_loss::gradient_of, x, weights, to + row * count, count, power, scale);
    };
    for_each_row<scalar_t>(logits, bumps, plane_start, beta, fill);
  });
  return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(centripetalnet, CPU, library) {
  library.impl("gaussian_focal_loss", &loss_cpu);
  library.impl("gaussian_focal_loss_backward", &loss_backward_cpu);
}

}  // namespace centripetalnet

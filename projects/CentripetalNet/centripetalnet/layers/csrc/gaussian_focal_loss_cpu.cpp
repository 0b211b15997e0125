// The Gaussian focal loss on the CPU. Targets are rendered row by row into a small buffer, and only
// for rows that a bump covers.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "gaussian_focal_loss.h"

#define CENTRIPETALNET_KERNELS "gaussian_focal_loss_cpu_kernels.h"
#include "foreach_cpu_capability.h"

namespace centripetalnet {
namespace {

using at::Tensor;

// With fewer elements per thread, another thread costs more than it saves.
constexpr int64_t kGrainElements = int64_t{1} << 15;

struct Exponents {
  double alpha, beta;
};

// Double precision is only for gradient checks, so it is not vectorised.
double loss_of_row(
    const double* logits, const double* targets, int64_t count, const Exponents& exponents) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double x = logits[i], target = targets == nullptr ? 0 : targets[i];
    const double small_part = std::log1p(std::exp(-std::abs(x)));
    const double log_p = std::min(x, 0.0) - small_part, log_q = std::min(-x, 0.0) - small_part;
    sum -= target == 1 ? log_p * std::exp(exponents.alpha * log_q)
                       : log_q * std::exp(exponents.alpha * log_p) *
                             std::pow(1 - target, exponents.beta);
  }
  return sum;
}

void gradient_of_row(
    const double* logits, const double* targets, double* gradient, int64_t count, double scale,
    const Exponents& exponents) {
  for (int64_t i = 0; i < count; ++i) {
    const double x = logits[i], target = targets == nullptr ? 0 : targets[i];
    const double small_part = std::log1p(std::exp(-std::abs(x)));
    const double log_p = std::min(x, 0.0) - small_part, log_q = std::min(-x, 0.0) - small_part;
    const double p = std::exp(log_p), q = std::exp(log_q), alpha = exponents.alpha;
    gradient[i] = scale * (target == 1 ? -std::exp(alpha * log_q) * (q - alpha * log_p * p)
                                       : std::exp(alpha * log_p) * (p - alpha * log_q * q) *
                                             std::pow(1 - target, exponents.beta));
  }
}

template <typename T>
double loss_of_row(
    const T* logits, const float* targets, int64_t count, const Exponents& exponents) {
  return CENTRIPETALNET_DISPATCH(
      loss_of_row, logits, targets, count, static_cast<float>(exponents.alpha),
      static_cast<float>(exponents.beta));
}

template <typename T>
void gradient_of_row(
    const T* logits, const float* targets, T* gradient, int64_t count, double scale,
    const Exponents& exponents) {
  CENTRIPETALNET_DISPATCH(
      gradient_of_row, logits, targets, gradient, count, static_cast<float>(scale),
      static_cast<float>(exponents.alpha), static_cast<float>(exponents.beta));
}

template <typename T>
using TargetOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The logits as rows of adjacent elements. A unit is `height` contiguous rows: a plane, or an image
// in channels-last format.
template <typename Target>
class Rows {
 public:
  Rows(
      const Tensor& logits, at::MemoryFormat format, const Tensor& bumps,
      const Tensor& plane_start)
      : channels_(logits.size(1)),
        height_(logits.size(2)),
        width_(logits.size(3)),
        planes_per_unit_(format == at::MemoryFormat::ChannelsLast ? channels_ : 1),
        bumps_(bumps.const_data_ptr<int32_t>()),
        plane_start_(plane_start.const_data_ptr<int32_t>()),
        profile_start_(bumps.size(0) + 1) {
    check_numbers(bumps.size(0), plane_start.size(0) - 1);
    for (int64_t bump = 0; bump < bumps.size(0); ++bump) {
      // No cell of the map is farther away.
      const int64_t radius = std::min<int64_t>(radius_of(bump), std::max(height_, width_));
      const Target sigma = (2 * static_cast<Target>(radius_of(bump)) + 1) / 6;
      for (int64_t distance = 0; distance <= radius; ++distance) {
        const Target squared = static_cast<Target>(distance) * distance;
        profiles_.push_back(std::exp(-squared / (2 * sigma * sigma)));
      }
      profile_start_[bump + 1] = static_cast<int64_t>(profiles_.size());
    }
  }

  int64_t row_elements() const { return width_ * planes_per_unit_; }

  // Calls visit(first element, count, targets) for runs that cover rows [begin, end). `targets` is
  // null for a run without bumps.
  template <typename Visit>
  void for_each_run(int64_t begin, int64_t end, const Visit& visit) const {
    std::vector<Target> targets(row_elements());
    for (int64_t row = begin; row < end;) {
      const int64_t first = row * row_elements();
      if (is_covered(row)) {
        render(row, targets);
        visit(first, row_elements(), targets.data());
        ++row;
        continue;
      }
      do {
        ++row;
      } while (row < end && !is_covered(row));
      visit(first, row * row_elements() - first, static_cast<const Target*>(nullptr));
    }
  }

 private:
  // Invalid indices would read outside the tensors.
  void check_numbers(int64_t num_bumps, int64_t num_planes) const {
    bool in_order = plane_start_[0] == 0 && plane_start_[num_planes] == num_bumps;
    for (int64_t plane = 0; plane < num_planes; ++plane) {
      in_order = in_order && plane_start_[plane] <= plane_start_[plane + 1];
    }
    TORCH_CHECK_VALUE(
        in_order, "gaussian_focal_loss expects plane_start to rise from 0 to the number of bumps, ",
        num_bumps);
    for (int64_t bump = 0; bump < num_bumps; ++bump) {
      TORCH_CHECK_VALUE(
          radius_of(bump) < 0 || (y_of(bump) >= 0 && y_of(bump) < height_ && x_of(bump) >= 0 &&
                                  x_of(bump) < width_),
          "gaussian_focal_loss expects bumps whose peaks are on the map of ", height_, " x ",
          width_, " cells, got one at y = ", y_of(bump), ", x = ", x_of(bump));
      TORCH_CHECK_VALUE(
          plane_of(bump) >= 0 && plane_of(bump) < num_planes,
          "gaussian_focal_loss expects the planes of bumps in [0, N * C) = [0, ", num_planes,
          "), got ", plane_of(bump));
    }
    // Otherwise the channels-last layout would give another result: it also uses the bump's plane.
    for (int64_t plane = 0; plane < num_planes; ++plane) {
      for (int64_t bump = plane_start_[plane]; bump < plane_start_[plane + 1]; ++bump) {
        TORCH_CHECK_VALUE(
            plane_of(bump) == plane,
            "gaussian_focal_loss expects bumps sorted by plane, with plane_start to match, "
            "got bump ", bump, " of plane ", plane_of(bump), " among those of plane ", plane);
      }
    }
  }

  int32_t plane_of(int64_t bump) const { return bumps_[bump * kBumpSize]; }
  int32_t y_of(int64_t bump) const { return bumps_[bump * kBumpSize + 1]; }
  int32_t x_of(int64_t bump) const { return bumps_[bump * kBumpSize + 2]; }
  int32_t radius_of(int64_t bump) const { return bumps_[bump * kBumpSize + 3]; }

  template <typename Visit>
  void for_each_bump(int64_t row, const Visit& visit) const {
    const int64_t first_plane = row / height_ * planes_per_unit_;
    const int32_t end = plane_start_[first_plane + planes_per_unit_];
    for (int64_t bump = plane_start_[first_plane]; bump < end; ++bump) {
      if (std::abs(row % height_ - y_of(bump)) <= radius_of(bump)) {
        visit(bump);
      }
    }
  }

  bool is_covered(int64_t row) const {
    bool covered = false;
    for_each_bump(row, [&](int64_t) { covered = true; });
    return covered;
  }

  void render(int64_t row, std::vector<Target>& targets) const {
    std::fill(targets.begin(), targets.end(), Target{0});
    for_each_bump(row, [&](int64_t bump) {
      const int64_t center = x_of(bump), radius = radius_of(bump);
      const int64_t channel = plane_of(bump) % planes_per_unit_;
      const Target* profile = profiles_.data() + profile_start_[bump];
      const Target height = profile[std::abs(row % height_ - y_of(bump))];
      const int64_t x_end = std::min(width_, center + radius + 1);
      for (int64_t x = std::max<int64_t>(0, center - radius); x < x_end; ++x) {
        Target& target = targets[x * planes_per_unit_ + channel];
        target = std::max(target, height * profile[std::abs(x - center)]);
      }
    });
  }

  int64_t channels_, height_, width_, planes_per_unit_;
  const int32_t* bumps_;
  const int32_t* plane_start_;
  // Concatenated for all bumps: the Gaussian at distances 0 to radius.
  std::vector<int64_t> profile_start_;
  std::vector<Target> profiles_;
};

Tensor loss_cpu(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double alpha,
    double beta) {
  check_loss_inputs(logits, bumps, plane_start, alpha, beta);
  const auto format = logits.suggest_memory_format();
  const Tensor dense = logits.contiguous(format);
  const Tensor bump_rows = bumps.contiguous(), starts = plane_start.contiguous();
  Tensor loss = at::empty({}, logits.options().dtype(loss_dtype(logits)));
  double sum = 0;
  if (logits.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, logits.scalar_type(), "gaussian_focal_loss_cpu", [&] {
          const Rows<TargetOf<scalar_t>> rows(dense, format, bump_rows, starts);
          const auto* data = dense.const_data_ptr<scalar_t>();
          const Exponents exponents{alpha, beta};
          sum = at::parallel_reduce(
              0, logits.numel() / rows.row_elements(),
              std::max<int64_t>(1, kGrainElements / rows.row_elements()), 0.0,
              [&](int64_t begin, int64_t end, double partial) {
                rows.for_each_run(
                    begin, end,
                    [&](int64_t first, int64_t count, const TargetOf<scalar_t>* targets) {
                      partial += loss_of_row(data + first, targets, count, exponents);
                    });
                return partial;
              },
              std::plus<double>());
        });
  }
  return loss.fill_(sum);
}

Tensor loss_backward_cpu(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& bumps, const Tensor& plane_start,
    double alpha, double beta) {
  check_loss_inputs(logits, bumps, plane_start, alpha, beta);
  check_grad_loss(grad_loss, logits);
  const auto format = logits.suggest_memory_format();
  const Tensor dense = logits.contiguous(format);
  const Tensor bump_rows = bumps.contiguous(), starts = plane_start.contiguous();
  Tensor gradient = at::empty_like(dense, dense.options().memory_format(format));
  if (logits.numel() == 0) {
    return gradient;
  }
  const double scale = grad_loss.item<double>();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, logits.scalar_type(), "gaussian_focal_loss_backward_cpu", [&] {
        const Rows<TargetOf<scalar_t>> rows(dense, format, bump_rows, starts);
        const auto* data = dense.const_data_ptr<scalar_t>();
        auto* gradient_data = gradient.mutable_data_ptr<scalar_t>();
        const Exponents exponents{alpha, beta};
        at::parallel_for(
            0, logits.numel() / rows.row_elements(),
            std::max<int64_t>(1, kGrainElements / rows.row_elements()),
            [&](int64_t begin, int64_t end) {
              rows.for_each_run(
                  begin, end,
                  [&](int64_t first, int64_t count, const TargetOf<scalar_t>* targets) {
                    gradient_of_row(
                        data + first, targets, gradient_data + first, count, scale, exponents);
                  });
            });
      });
  return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(centripetalnet, CPU, library) {
  library.impl("gaussian_focal_loss", &loss_cpu);
  library.impl("gaussian_focal_loss_backward", &loss_backward_cpu);
}

}  // namespace centripetalnet

// The Gaussian focal loss on the CPU.
//
// Logits are processed in rows, which are contiguous: a row of one plane or, in channels-last
// format, of all planes of an image. The weights of a row's cells are computed into a buffer first.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
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

// With fewer elements per thread, another thread costs more than it saves.
constexpr int64_t kGrainElements = int64_t{1} << 15;

// The logits' rows and the bumps on them.
template <typename T>
class Rows {
 public:
  using Value = ValueOf<T>;

  // Neither the tensors nor their sizes may be empty, except for `bumps`.
  Rows(const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double beta)
      : logits_(logits.contiguous(logits.suggest_memory_format())),
        bump_rows_(bumps.contiguous()),
        starts_(plane_start.contiguous()),
        bumps_(reinterpret_cast<const Bump*>(bump_rows_.const_data_ptr<int32_t>())),
        plane_start_(starts_.const_data_ptr<int32_t>()),
        beta_(static_cast<Value>(beta)),
        height_(logits.size(2)),
        width_(logits.size(3)),
        planes_per_row_(
            logits.suggest_memory_format() == at::MemoryFormat::ChannelsLast ? logits.size(1) : 1) {
    check_numbers(bumps.size(0), plane_start.size(0) - 1);
  }

  int64_t length() const { return width_ * planes_per_row_; }
  int64_t count() const { return logits_.numel() / length(); }

  // Calls visit(row, its logits, its weights) for all rows, in parallel.
  template <typename Visit>
  void for_each(const Visit& visit) const {
    const T* const logits = logits_.const_data_ptr<T>();
    const int64_t grain = std::max<int64_t>(1, kGrainElements / length());
    at::parallel_for(0, count(), grain, [&](int64_t begin, int64_t end) {
      std::vector<Value> weights(length());
      for (int64_t row = begin; row < end; ++row) {
        fill(weights, row);
        visit(row, logits + row * length(), weights.data());
      }
    });
  }

 private:
  // Invalid indices would read outside the tensors.
  void check_numbers(int64_t bumps, int64_t planes) const {
    const bool rises = plane_start_[0] == 0 && plane_start_[planes] == bumps &&
                       std::is_sorted(plane_start_, plane_start_ + planes + 1);
    TORCH_CHECK_VALUE(
        rises, "gaussian_focal_loss expects plane_start to rise from 0 to the number of bumps, ",
        bumps);
    for (int64_t plane = 0; plane < planes; ++plane) {
      for (int64_t i = plane_start_[plane]; i < plane_start_[plane + 1]; ++i) {
        const auto [plane_of_bump, y, x, radius] = bumps_[i];
        TORCH_CHECK_VALUE(
            radius < 0 || (y >= 0 && y < height_ && x >= 0 && x < width_),
            "gaussian_focal_loss expects bumps whose peaks are on the map of ", height_, " x ",
            width_, " cells, got one at y = ", y, ", x = ", x);
        TORCH_CHECK_VALUE(
            plane_of_bump >= 0 && plane_of_bump < planes,
            "gaussian_focal_loss expects the planes of bumps in [0, N * C) = [0, ", planes,
            "), got ", plane_of_bump);
        // Otherwise the channels-last format would give another result: it uses the bump's plane.
        TORCH_CHECK_VALUE(
            plane_of_bump == plane,
            "gaussian_focal_loss expects bumps sorted by plane, with plane_start to match, "
            "got bump ", i, " of plane ", plane_of_bump, " among those of plane ", plane);
      }
    }
  }

  void fill(std::vector<Value>& weights, int64_t row) const {
    std::fill(weights.begin(), weights.end(), Value{1});
    const int64_t first_plane = row / height_ * planes_per_row_, y = row % height_;
    const int64_t end = plane_start_[first_plane + planes_per_row_];
    for (int64_t i = plane_start_[first_plane]; i < end; ++i) {
      const auto [plane, peak_y, peak_x, radius] = bumps_[i];
      if (std::abs(y - peak_y) > radius) {
        continue;
      }
      const int64_t x_end = std::min<int64_t>(width_, int64_t{peak_x} + radius + 1);
      for (int64_t x = std::max<int64_t>(0, int64_t{peak_x} - radius); x < x_end; ++x) {
        Value& weight = weights[x * planes_per_row_ + plane - first_plane];
        weight = std::min(weight, weight_of(bumps_[i], y, x, beta_));
      }
    }
  }

  Tensor logits_, bump_rows_, starts_;
  const Bump* bumps_;
  const int32_t* plane_start_;
  Value beta_;
  int64_t height_, width_, planes_per_row_;
};

Tensor loss_cpu(
    const Tensor& logits, const Tensor& bumps, const Tensor& plane_start, double alpha,
    double beta) {
  Tensor loss = loss_meta(logits, bumps, plane_start, alpha, beta);
  if (logits.numel() == 0) {
    return loss.zero_();
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, logits.scalar_type(), "gaussian_focal_loss_cpu", [&] {
        using Value = ValueOf<scalar_t>;
        const Rows<scalar_t> rows(logits, bumps, plane_start, beta);
        // Summed in one order, whatever the number of threads.
        std::vector<double> sums(rows.count());
        rows.for_each([&](int64_t row, const scalar_t* x, const Value* weights) {
          sums[row] = CENTRIPETALNET_DISPATCH(
              focal_loss::sum_of, x, weights, rows.length(), static_cast<Value>(alpha));
        });
        loss.fill_(std::accumulate(sums.begin(), sums.end(), 0.0));
      });
  return loss;
}

Tensor loss_backward_cpu(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& bumps, const Tensor& plane_start,
    double alpha, double beta) {
  Tensor gradient = loss_backward_meta(grad_loss, logits, bumps, plane_start, alpha, beta);
  if (logits.numel() == 0) {
    return gradient;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, logits.scalar_type(), "gaussian_focal_loss_backward_cpu", [&] {
        using Value = ValueOf<scalar_t>;
        const Rows<scalar_t> rows(logits, bumps, plane_start, beta);
        const auto scale = grad_loss.item<Value>();
        auto* const data = gradient.mutable_data_ptr<scalar_t>();
        rows.for_each([&](int64_t row, const scalar_t* x, const Value* weights) {
          CENTRIPETALNET_DISPATCH(
              focal_loss::gradient_of, x, weights, data + row * rows.length(), rows.length(),
              static_cast<Value>(alpha), scale);
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

// Soft non-maximum suppression on the CPU. It has no gradient.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "operators.h"

namespace centripetalnet {
namespace {

using at::Tensor;

template <typename T>
T area(const T* box) {
  return (box[2] - box[0]) * (box[3] - box[1]);
}

template <typename T>
T intersection_over_union(const T* a, const T* b) {
  const T width = std::max(T{0}, std::min(a[2], b[2]) - std::max(a[0], b[0]));
  const T height = std::max(T{0}, std::min(a[3], b[3]) - std::max(a[1], b[1]));
  const T intersection = width * height;
  const T all = area(a) + area(b) - intersection;
  return all > 0 ? intersection / all : T{0};
}

// Takes the boxes of one image; lowers `scores` of the others.
template <typename T, typename Decay>
void take_boxes(
    const T* boxes, T* scores, const int64_t* classes, int64_t count, int64_t rounds,
    const Decay& decay, T min_score, int64_t* keep, T* kept_scores) {
  // Indices of the remaining boxes, in their order.
  std::vector<int64_t> left;
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] >= 0) {
      left.push_back(i);
    }
  }
  for (int64_t round = 0; round < rounds && !left.empty(); ++round) {
    const int64_t best = *std::max_element(
        left.begin(), left.end(), [&](int64_t a, int64_t b) { return scores[a] < scores[b]; });
    keep[round] = best;
    kept_scores[round] = scores[best];
    const auto is_dropped = [&](int64_t i) {
      if (classes[i] == classes[best]) {
        scores[i] *= decay(intersection_over_union(boxes + 4 * i, boxes + 4 * best));
      }
      return i == best || !(scores[i] >= min_score);
    };
    left.erase(std::remove_if(left.begin(), left.end(), is_dropped), left.end());
  }
}

}  // namespace

std::tuple<Tensor, Tensor> soft_nms_cpu(
    const Tensor& boxes, const Tensor& scores, const Tensor& classes, int64_t max_detections,
    bool gaussian, double sigma, double iou_threshold, double min_score) {
  Tensor keep, kept_scores;
  std::tie(keep, kept_scores) = soft_nms_meta(
      boxes, scores, classes, max_detections, gaussian, sigma, iou_threshold, min_score);
  const int64_t images = scores.size(0), count = scores.size(1), rounds = keep.size(1);
  const auto dtype = scores.scalar_type();
  // Repeated rounding to half precision would change the order.
  const auto compute_dtype = dtype == at::kHalf || dtype == at::kBFloat16 ? at::kFloat : dtype;
  keep.zero_();
  kept_scores.fill_(-1);
  if (keep.numel() == 0) {
    return {keep, kept_scores};
  }
  kept_scores = kept_scores.to(compute_dtype);
  const Tensor dense_boxes = boxes.to(compute_dtype).contiguous();
  const Tensor lowered = scores.to(compute_dtype, false, /*copy=*/true).contiguous();
  const Tensor dense_classes = classes.contiguous();
  AT_DISPATCH_FLOATING_TYPES(compute_dtype, "soft_nms_cpu", [&] {
    // If sigma is rounded to 0, boxes that do not overlap give 0 / 0.
    const auto sigma_or_least =
        std::max(static_cast<scalar_t>(sigma), std::numeric_limits<scalar_t>::min());
    const auto threshold = static_cast<scalar_t>(iou_threshold);
    const auto decay = [&](scalar_t iou) {
      if (gaussian) {
        return std::exp(-iou * iou / sigma_or_least);
      }
      return iou > threshold ? 1 - iou : scalar_t{1};
    };
    at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        take_boxes(
            dense_boxes.const_data_ptr<scalar_t>() + 4 * image * count,
            lowered.mutable_data_ptr<scalar_t>() + image * count,
            dense_classes.const_data_ptr<int64_t>() + image * count, count, rounds, decay,
            static_cast<scalar_t>(min_score), keep.mutable_data_ptr<int64_t>() + image * rounds,
            kept_scores.mutable_data_ptr<scalar_t>() + image * rounds);
      }
    });
  });
  return {keep, kept_scores.to(dtype)};
}

TORCH_LIBRARY_IMPL(centripetalnet, CPU, library) { library.impl("soft_nms", &soft_nms_cpu); }

}  // namespace centripetalnet

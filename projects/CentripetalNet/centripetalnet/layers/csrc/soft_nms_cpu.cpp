// Soft non-maximum suppression on the CPU: schema, kernel and meta kernel. It has no gradient.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

namespace centripetalnet {
namespace {

using at::Tensor;

template <typename T>
struct Decay {
  bool gaussian;
  T sigma, iou_threshold;

  T operator()(T iou) const {
    if (gaussian) {
      return std::exp(-iou * iou / sigma);
    }
    return iou > iou_threshold ? 1 - iou : T{1};
  }
};

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

// Takes the boxes of one image. `left` holds the remaining ones in their order.
template <typename T>
void take_boxes(
    const T* boxes, const T* scores, const int64_t* classes, int64_t count, int64_t rounds,
    const Decay<T>& decay, T min_score, int64_t* keep, T* kept_scores) {
  struct Left {
    T score;
    int64_t index;
  };
  std::vector<Left> left;
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] >= 0) {
      left.push_back({scores[i], i});
    }
  }
  for (int64_t round = 0; round < rounds && !left.empty(); ++round) {
    const Left best = *std::max_element(
        left.begin(), left.end(), [](const Left& a, const Left& b) { return a.score < b.score; });
    keep[round] = best.index;
    kept_scores[round] = best.score;
    const T* taken = boxes + 4 * best.index;
    auto end = left.begin();
    for (const Left& other : left) {
      T score = other.score;
      if (classes[other.index] == classes[best.index]) {
        score *= decay(intersection_over_union(boxes + 4 * other.index, taken));
      }
      if (other.index != best.index && score >= min_score) {
        *end++ = {score, other.index};
      }
    }
    left.erase(end, left.end());
  }
}

bool is_half(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16;
}

void check_arguments(
    const Tensor& boxes, const Tensor& scores, const Tensor& classes,
    const c10::SymInt& max_detections, double sigma, double min_score) {
  TORCH_CHECK_VALUE(
      scores.dim() == 2, "soft_nms expects scores of shape (N, M), got ", scores.sym_sizes());
  const c10::SymInt images = scores.sym_size(0), count = scores.sym_size(1);
  TORCH_CHECK_VALUE(
      boxes.dim() == 3 && boxes.sym_size(0) == images && boxes.sym_size(1) == count &&
          boxes.sym_size(2) == 4,
      "soft_nms expects boxes of shape (N, M, 4) for scores of shape ", scores.sym_sizes(),
      ", got ", boxes.sym_sizes());
  TORCH_CHECK_VALUE(
      classes.sym_sizes() == scores.sym_sizes(),
      "soft_nms expects classes of the shape of scores, ", scores.sym_sizes(), ", got ",
      classes.sym_sizes());
  TORCH_CHECK_VALUE(
      boxes.device() == scores.device() && classes.device() == scores.device(),
      "soft_nms expects boxes, scores and classes on one device, got ", boxes.device(), ", ",
      scores.device(), " and ", classes.device());
  TORCH_CHECK_TYPE(
      classes.scalar_type() == at::kLong, "soft_nms expects classes in int64, got ",
      classes.scalar_type());
  const auto dtype = scores.scalar_type();
  TORCH_CHECK_TYPE(
      boxes.scalar_type() == dtype &&
          (is_half(dtype) || dtype == at::kFloat || dtype == at::kDouble),
      "soft_nms expects boxes and scores of one floating point dtype, float16, bfloat16, float32 "
      "or float64, got ",
      boxes.scalar_type(), " and ", dtype);
  TORCH_CHECK_VALUE(
      max_detections >= 0, "soft_nms expects max_detections >= 0, got ", max_detections);
  TORCH_CHECK_VALUE(sigma > 0, "soft_nms expects sigma > 0, got ", sigma);
  TORCH_CHECK_VALUE(!std::isnan(min_score), "soft_nms expects min_score to be a number, got nan");
}

std::tuple<Tensor, Tensor> soft_nms_meta(
    const Tensor& boxes, const Tensor& scores, const Tensor& classes, c10::SymInt max_detections,
    bool /*gaussian*/, double sigma, double /*iou_threshold*/, double min_score) {
  check_arguments(boxes, scores, classes, max_detections, sigma, min_score);
  const c10::SymInt rounds = max_detections.min(scores.sym_size(1));
  const c10::SymInt shape[] = {scores.sym_size(0), rounds};
  return {
      at::empty_symint(shape, classes.options()), at::empty_symint(shape, scores.options())};
}

std::tuple<Tensor, Tensor> soft_nms_cpu(
    const Tensor& boxes, const Tensor& scores, const Tensor& classes, int64_t max_detections,
    bool gaussian, double sigma, double iou_threshold, double min_score) {
  check_arguments(boxes, scores, classes, max_detections, sigma, min_score);
  const int64_t images = scores.size(0), count = scores.size(1);
  const int64_t rounds = std::min(max_detections, count);
  const auto dtype = scores.scalar_type();
  // Repeated rounding to half precision would change the order.
  const auto compute_dtype = is_half(dtype) ? at::kFloat : dtype;
  Tensor keep = at::zeros({images, rounds}, classes.options());
  Tensor kept_scores =
      at::empty({images, rounds}, scores.options().dtype(compute_dtype)).fill_(-1);
  if (keep.numel() == 0) {
    return {keep, kept_scores.to(dtype)};
  }
  const Tensor dense_boxes = boxes.to(compute_dtype).contiguous();
  const Tensor dense_scores = scores.to(compute_dtype).contiguous();
  const Tensor dense_classes = classes.contiguous();
  AT_DISPATCH_FLOATING_TYPES(compute_dtype, "soft_nms_cpu", [&] {
    // If sigma is rounded to 0, boxes that do not overlap give 0 / 0.
    const auto least_sigma = std::numeric_limits<scalar_t>::min();
    const Decay<scalar_t> decay{
        gaussian, std::max(static_cast<scalar_t>(sigma), least_sigma),
        static_cast<scalar_t>(iou_threshold)};
    const auto* box_data = dense_boxes.const_data_ptr<scalar_t>();
    const auto* score_data = dense_scores.const_data_ptr<scalar_t>();
    const auto* class_data = dense_classes.const_data_ptr<int64_t>();
    auto* keep_data = keep.mutable_data_ptr<int64_t>();
    auto* kept_score_data = kept_scores.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        take_boxes(
            box_data + image * count * 4, score_data + image * count, class_data + image * count,
            count, rounds, decay, static_cast<scalar_t>(min_score), keep_data + image * rounds,
            kept_score_data + image * rounds);
      }
    });
  });
  return {keep, kept_scores.to(dtype)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(centripetalnet, library) {
  library.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor classes, SymInt max_detections, "
      "bool gaussian, float sigma, float iou_threshold, float min_score) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(centripetalnet, CPU, library) { library.impl("soft_nms", &soft_nms_cpu); }

TORCH_LIBRARY_IMPL(centripetalnet, Meta, library) { library.impl("soft_nms", &soft_nms_meta); }

}  // namespace centripetalnet

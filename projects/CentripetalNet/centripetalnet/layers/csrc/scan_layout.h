// The layout that corner pooling scans. Independent of PyTorch, as the CUDA kernels are.
#pragma once

#include <cstdint>

namespace centripetalnet {

// A dense 4-d tensor viewed as (outer, length, inner): scans run over `length`; the `inner`
// elements of one row are adjacent in memory. This covers both axes and both memory formats.
struct ScanLayout {
  int64_t outer, length, inner;
  bool reverse;  // the scan starts at the last row
};

// Of a dense NCHW or channels-last tensor. Directions: 0 top, 1 bottom, 2 left, 3 right.
template <typename Tensor>
ScanLayout scan_layout(const Tensor& dense, int64_t direction) {
  const bool vertical = direction < 2, reverse = direction % 2 == 0;
  const int64_t n = dense.size(0), c = dense.size(1), h = dense.size(2), w = dense.size(3);
  if (dense.is_contiguous()) {
    return vertical ? ScanLayout{n * c, h, w, reverse} : ScanLayout{n * c * h, w, 1, reverse};
  }
  return vertical ? ScanLayout{n, h, w * c, reverse} : ScanLayout{n * h, w, c, reverse};
}

}  // namespace centripetalnet

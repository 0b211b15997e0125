// CUDA kernels of corner pooling, independent of PyTorch. Of CUDA they use only shared memory and
// __syncthreads, so that tests can emulate them on the CPU.
//
// A line is one scan line. A thread block processes kLines lines in tiles of kTileLength positions,
// counted in scan direction. Every thread scans a segment of kRows positions of one line in
// registers. Results are combined across segments in shared memory, across tiles in registers.
//
// threadIdx.x is the line, so that access is coalesced where lines are adjacent in memory. Where
// the lines themselves are contiguous, a tile is read and written along the lines and transposed in
// shared memory.
#pragma once

#include <cmath>
#include <cstdint>

namespace centripetalnet::gpu {

constexpr int kLines = 32;
constexpr int kSegments = 8;
constexpr int kRows = 16;
constexpr int kTileLength = kSegments * kRows;
constexpr int kThreads = kLines * kSegments;
// Limits registers per thread: the compiler would spend them on addresses, and fewer blocks fit.
constexpr int kBlocksPerProcessor = 3;

// Line i begins at element i / inner * length * inner + i % inner; its elements are `inner` apart.
// A reverse scan starts at the line's end.
struct LineLayout {
  int64_t lines;
  int64_t length;
  int64_t inner;
  bool reverse;
};

// Bit i: position i of a segment became the maximum.
using Marks = uint16_t;
static_assert(kRows <= 8 * sizeof(Marks), "Marks holds a bit for every position of a segment");

__host__ __device__ inline int64_t block_count(const LineLayout& layout) {
  return (layout.lines + kLines - 1) / kLines;
}

__host__ __device__ inline int64_t tile_count(const LineLayout& layout) {
  return (layout.length + kTileLength - 1) / kTileLength;
}

// Number of Marks that the backward kernel keeps in global memory. A single tile needs none.
inline int64_t mark_count(const LineLayout& layout) {
  const int64_t tiles = tile_count(layout);
  return tiles > 1 ? tiles * kSegments * block_count(layout) * kLines : 0;
}

// Order of cummax: NaN is larger than any number, a later equal value replaces an earlier one.
template <typename Value>
__device__ inline bool reaches(Value candidate, Value best) {
  return candidate >= best || candidate != candidate;
}

template <typename Value>
__device__ inline Value later_maximum(Value best, Value candidate) {
  return reaches(candidate, best) ? candidate : best;
}

template <typename Value>
__device__ inline Value lowest() {
  return -static_cast<Value>(INFINITY);
}

// A tile between global memory and registers. The padding avoids bank conflicts (banks of 4 bytes)
// when the threads of a warp read a column.
template <typename T, bool kContiguous>
struct Staging {
  static constexpr int kPadding = sizeof(T) < 4 ? 4 / sizeof(T) : 1;
  T tile[kLines][kTileLength + kPadding];
};

template <typename T>
struct Staging<T, false> {};

// The lines of one thread block, and the calling thread's position in them.
template <typename T, bool kContiguous>
struct Lines {
  const LineLayout& layout;
  int64_t first;  // line of the block
  int64_t line;   // of the thread
  int64_t begin;  // of the thread's line, where its scan starts
  int64_t step;

  __device__ explicit Lines(const LineLayout& layout)
      : layout(layout),
        first(static_cast<int64_t>(blockIdx.x) * kLines),
        line(first + threadIdx.x),
        begin(
            line / layout.inner * layout.length * layout.inner + line % layout.inner +
            along(0) * layout.inner),
        step(layout.reverse ? -layout.inner : layout.inner) {}

  __device__ static int64_t position(int64_t tile, int row) {
    return tile * kTileLength + static_cast<int64_t>(threadIdx.y) * kRows + row;
  }
  __device__ bool has(int64_t tile, int row) const {
    return line < layout.lines && position(tile, row) < layout.length;
  }
  __device__ int64_t along(int64_t position) const {
    return layout.reverse ? layout.length - 1 - position : position;
  }

  // Fills `values` where has(tile, row). Collective: all threads of the block must call it.
  template <typename Value>
  __device__ void load(
      const T* from, int64_t tile, Value (&values)[kRows], Staging<T, kContiguous>& staging) const {
    if constexpr (kContiguous) {
      // Other threads may still read the previous contents.
      __syncthreads();
      for_each_staged(tile, [&](int64_t source, int staged_line, int column) {
        staging.tile[staged_line][column] = from[source];
      });
      __syncthreads();
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (has(tile, row)) {
        if constexpr (kContiguous) {
          values[row] = static_cast<Value>(staging.tile[threadIdx.x][threadIdx.y * kRows + row]);
        } else {
          values[row] = static_cast<Value>(from[begin + position(tile, row) * step]);
        }
      }
    }
  }

  // Inverse of load; collective, too.
  template <typename Value>
  __device__ void store(
      const Value (&values)[kRows], T* to, int64_t tile, Staging<T, kContiguous>& staging) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (has(tile, row)) {
        if constexpr (kContiguous) {
          // No barrier before this: since the last load, a thread has read only its own segment.
          staging.tile[threadIdx.x][threadIdx.y * kRows + row] = static_cast<T>(values[row]);
        } else {
          to[begin + position(tile, row) * step] = static_cast<T>(values[row]);
        }
      }
    }
    if constexpr (kContiguous) {
      __syncthreads();
      for_each_staged(tile, [&](int64_t target, int staged_line, int column) {
        to[target] = staging.tile[staged_line][column];
      });
    }
  }

  // Calls visit(address, line of the block, column) for this thread's part of a tile of contiguous
  // lines. The threads of a warp get adjacent addresses.
  template <typename Visit>
  __device__ void for_each_staged(int64_t tile, const Visit& visit) const {
    for (int row = threadIdx.y; row < kLines; row += kSegments) {
      for (int column = threadIdx.x; column < kTileLength; column += kLines) {
        const int64_t at = tile * kTileLength + column;
        if (first + row < layout.lines && at < layout.length) {
          visit((first + row) * layout.length + along(at), row, column);
        }
      }
    }
  }
};

// Maximum of all positions before the thread's segment. `carried` is the maximum of all previous
// tiles and is updated with this one's. Collective: all threads of the block must call it.
template <typename Value>
__device__ inline Value maximum_before(
    Value segment_maximum, Value (&maxima)[kSegments][kLines], Value& carried) {
  maxima[threadIdx.y][threadIdx.x] = segment_maximum;
  __syncthreads();
  Value before = carried;
#pragma unroll
  for (int segment = 0; segment < kSegments; ++segment) {
    if (segment == static_cast<int>(threadIdx.y)) {
      before = carried;
    }
    carried = later_maximum(carried, maxima[segment][threadIdx.x]);
  }
  // The next tile overwrites `maxima`.
  __syncthreads();
  return before;
}

// Launch with block_count(layout) blocks of (kLines, kSegments) threads. kContiguous requires
// layout.inner == 1. Sums and comparisons are in `Value`, which represents every T exactly.

template <typename T, typename Value, bool kContiguous>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    corner_pool_kernel(const T* input, T* output, LineLayout layout) {
  __shared__ Staging<T, kContiguous> staging;
  __shared__ Value maxima[kSegments][kLines];
  const Lines<T, kContiguous> lines(layout);
  const int64_t tiles = tile_count(layout);
  Value carried = lowest<Value>();
  for (int64_t tile = 0; tile < tiles; ++tile) {
    Value values[kRows];
    lines.load(input, tile, values, staging);
    Value segment_maximum = lowest<Value>();
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (lines.has(tile, row)) {
        segment_maximum = later_maximum(segment_maximum, values[row]);
      }
    }
    Value best = maximum_before(segment_maximum, maxima, carried);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (lines.has(tile, row)) {
        best = later_maximum(best, values[row]);
        values[row] = best;
      }
    }
    lines.store(values, output, tile, staging);
  }
}

// An element that became the maximum gets the sum of the output gradients from its position to the
// one before the next such element. The first pass marks these elements; the second, backwards,
// sums. `kept_marks` has mark_count(layout) elements.
template <typename T, typename Value, bool kContiguous>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) corner_pool_backward_kernel(
    const T* grad_output, const T* input, T* grad_input, Marks* kept_marks, LineLayout layout) {
  __shared__ Staging<T, kContiguous> staging;
  __shared__ Value shared_values[kSegments][kLines];
  __shared__ bool shared_marked[kSegments][kLines];
  const Lines<T, kContiguous> lines(layout);
  const int64_t tiles = tile_count(layout);
  const int64_t padded_lines = block_count(layout) * kLines;
  // A thread reads only its own marks, so this needs no barrier.
  const auto kept = [&](int64_t tile) -> Marks& {
    return kept_marks[(tile * kSegments + threadIdx.y) * padded_lines + lines.line];
  };
  Value values[kRows];
  Marks marks = 0;

  Value carried = lowest<Value>();
  for (int64_t tile = 0; tile < tiles; ++tile) {
    lines.load(input, tile, values, staging);
    Value segment_maximum = lowest<Value>();
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (lines.has(tile, row)) {
        segment_maximum = later_maximum(segment_maximum, values[row]);
      }
    }
    Value best = maximum_before(segment_maximum, shared_values, carried);
    marks = 0;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (lines.has(tile, row) && reaches(values[row], best)) {
        best = values[row];
        marks = static_cast<Marks>(marks | 1u << row);
      }
    }
    if (tiles > 1) {
      kept(tile) = marks;
    }
  }

  // Gradient that flows from the later tiles to the last mark before them.
  Value flowing = 0;
  for (int64_t tile = tiles - 1; tile >= 0; --tile) {
    lines.load(grad_output, tile, values, staging);
    if (tiles > 1) {
      marks = kept(tile);
    }
    Value before_marks = 0;
#pragma unroll
    for (int row = kRows - 1; row >= 0; --row) {
      if (lines.has(tile, row)) {
        before_marks = (marks >> row & 1) ? Value(0) : before_marks + values[row];
      }
    }
    shared_values[threadIdx.y][threadIdx.x] = before_marks;
    shared_marked[threadIdx.y][threadIdx.x] = marks != 0;
    __syncthreads();
    Value sum = flowing;
#pragma unroll
    for (int segment = kSegments - 1; segment >= 0; --segment) {
      if (segment == static_cast<int>(threadIdx.y)) {
        sum = flowing;
      }
      const Value out_of_front = shared_values[segment][threadIdx.x];
      flowing = shared_marked[segment][threadIdx.x] ? out_of_front : flowing + out_of_front;
    }
    __syncthreads();
#pragma unroll
    for (int row = kRows - 1; row >= 0; --row) {
      if (lines.has(tile, row)) {
        const bool marked = marks >> row & 1;
        sum += values[row];
        values[row] = marked ? sum : Value(0);
        sum = marked ? Value(0) : sum;
      }
    }
    lines.store(values, grad_input, tile, staging);
  }
}

}  // namespace centripetalnet::gpu

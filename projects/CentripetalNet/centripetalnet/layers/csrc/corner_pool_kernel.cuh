// CUDA kernels of corner pooling, independent of PyTorch. Of CUDA they use only shared memory and
// __syncthreads, so that tests can emulate them on the CPU.
//
// A line is one scan line. A thread block processes kLines lines in tiles of kTileLength positions,
// counted in scan direction. Every thread scans a segment of kRows positions of one line in
// registers. Results are combined across segments in shared memory, across tiles in registers.
//
// threadIdx.x is the line, threadIdx.y the segment, so that access is coalesced where lines are
// adjacent in memory. Where the lines themselves are contiguous, a tile is read and written along
// the lines and transposed in shared memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "scan_layout.h"

namespace centripetalnet::gpu {

constexpr int kLines = 32;
constexpr int kSegments = 8;
constexpr int kRows = 16;
constexpr int kTileLength = kSegments * kRows;
constexpr int kThreads = kLines * kSegments;
// Of a thread block, without asking for more at launch; the same on all GPUs.
constexpr int kMaxSharedBytes = 48 * 1024;
// Limits registers per thread: the compiler would spend them on addresses, and fewer blocks fit.
constexpr int kBlocksPerProcessor = 3;

// Bit i: position i of a segment became the maximum.
using Marks = uint16_t;
static_assert(kRows <= 8 * sizeof(Marks), "Marks holds a bit for every position of a segment");

__host__ __device__ inline int64_t block_count(const ScanLayout& layout) {
  return (layout.outer * layout.inner + kLines - 1) / kLines;
}

__host__ __device__ inline int64_t tile_count(const ScanLayout& layout) {
  return (layout.length + kTileLength - 1) / kTileLength;
}

// Number of Marks that the backward kernel keeps in global memory, one per thread and tile.
inline int64_t mark_count(const ScanLayout& layout) {
  return tile_count(layout) * block_count(layout) * kThreads;
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
constexpr Value kLowest = -static_cast<Value>(INFINITY);

// Reads and writes the tiles of a thread block. `staging` is in shared memory and holds a tile of
// contiguous lines. The padding avoids bank conflicts (banks of 4 bytes) when the threads of a warp
// read a column.
template <typename T, bool kContiguous>
struct Tiles {
  using Staging = T[kContiguous ? kLines : 1][kTileLength + (sizeof(T) < 4 ? 4 / sizeof(T) : 1)];

  const ScanLayout& layout;
  Staging& staging;

  __device__ int64_t first_line() const { return int64_t{blockIdx.x} * kLines; }
  __device__ int64_t line() const { return first_line() + threadIdx.x; }

  __device__ bool has(int64_t line, int64_t position) const {
    return line < layout.outer * layout.inner && position < layout.length;
  }
  __device__ int64_t address(int64_t line, int64_t position) const {
    const int64_t inner = kContiguous ? 1 : layout.inner;
    const int64_t along = layout.reverse ? layout.length - 1 - position : position;
    return (line / inner * layout.length + along) * inner + line % inner;
  }

  // Calls visit(staged element, address) for this thread's part of a tile of contiguous lines. The
  // threads of a warp get adjacent addresses.
  template <typename Visit>
  __device__ void for_each_staged(int64_t tile, const Visit& visit) const {
    // Constant numbers of steps, so that all loads are in flight together.
#pragma unroll
    for (int i = 0; i < kLines / kSegments; ++i) {
#pragma unroll
      for (int j = 0; j < kTileLength / kLines; ++j) {
        const int row = i * kSegments + threadIdx.y, column = j * kLines + threadIdx.x;
        const int64_t line = first_line() + row, position = tile * kTileLength + column;
        if (has(line, position)) {
          visit(staging[row][column], address(line, position));
        }
      }
    }
  }

  // Loads the thread's segment, with `padding` after the end of the line. Collective: all threads
  // of the block must call it.
  template <typename Value>
  __device__ void load(const T* from, int64_t tile, Value padding, Value (&values)[kRows]) const {
    if constexpr (kContiguous) {
      // No barrier before this: after reading their segments of the previous tile, all threads have
      // waited for each other, and what store staged is read by the thread that now overwrites it.
      for_each_staged(tile, [&](T& staged, int64_t address) { staged = from[address]; });
      __syncthreads();
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int column = threadIdx.y * kRows + row;
      const int64_t position = tile * kTileLength + column;
      values[row] = padding;
      if (has(line(), position)) {
        values[row] = static_cast<Value>(
            kContiguous ? staging[threadIdx.x][column] : from[address(line(), position)]);
      }
    }
  }

  // Inverse of load; collective, too.
  template <typename Value>
  __device__ void store(const Value (&values)[kRows], T* to, int64_t tile) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int column = threadIdx.y * kRows + row;
      const int64_t position = tile * kTileLength + column;
      if (has(line(), position)) {
        // No barrier before this: since the last load, a thread has read only its own segment.
        T& target = kContiguous ? staging[threadIdx.x][column] : to[address(line(), position)];
        target = static_cast<T>(values[row]);
      }
    }
    if constexpr (kContiguous) {
      __syncthreads();
      for_each_staged(tile, [&](T& staged, int64_t address) { to[address] = staged; });
    }
  }
};

// Maximum of all positions before the thread's segment, `values`. `carried` is the maximum of all
// previous tiles and is updated with this one's. Collective: all threads of the block must call it.
template <typename Value>
__device__ inline Value maximum_before(
    const Value (&values)[kRows], Value (&maxima)[kSegments][kLines], Value& carried) {
  Value segment_maximum = kLowest<Value>;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    segment_maximum = later_maximum(segment_maximum, values[row]);
  }
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
    corner_pool_kernel(const T* input, T* output, ScanLayout layout) {
  __shared__ typename Tiles<T, kContiguous>::Staging staging;
  __shared__ Value maxima[kSegments][kLines];
  static_assert(sizeof(staging) + sizeof(maxima) <= kMaxSharedBytes, "a tile is too large");
  const Tiles<T, kContiguous> tiles{layout, staging};
  Value values[kRows], carried = kLowest<Value>;
  for (int64_t tile = 0; tile < tile_count(layout); ++tile) {
    tiles.load(input, tile, kLowest<Value>, values);
    Value best = maximum_before(values, maxima, carried);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      values[row] = best = later_maximum(best, values[row]);
    }
    tiles.store(values, output, tile);
  }
}

// An element that became the maximum gets the sum of the output gradients from its position to the
// one before the next such element. The first pass marks these elements; the second, backwards,
// sums. `kept_marks` has mark_count(layout) elements.
template <typename T, typename Value, bool kContiguous>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) corner_pool_backward_kernel(
    const T* grad_output, const T* input, T* grad_input, Marks* kept_marks, ScanLayout layout) {
  __shared__ typename Tiles<T, kContiguous>::Staging staging;
  __shared__ Value shared_values[kSegments][kLines];
  __shared__ bool shared_marked[kSegments][kLines];
  static_assert(
      sizeof(staging) + sizeof(shared_values) + sizeof(shared_marked) <= kMaxSharedBytes,
      "a tile is too large");
  const Tiles<T, kContiguous> tiles{layout, staging};
  // A thread reads only its own marks, so this needs no barrier.
  const int64_t tile_marks = block_count(layout) * kThreads;
  kept_marks += int64_t{blockIdx.x} * kThreads + threadIdx.y * kLines + threadIdx.x;

  Value values[kRows], carried = kLowest<Value>;
  for (int64_t tile = 0; tile < tile_count(layout); ++tile) {
    tiles.load(input, tile, kLowest<Value>, values);
    Value best = maximum_before(values, shared_values, carried);
    Marks marks = 0;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (reaches(values[row], best)) {
        best = values[row];
        marks = static_cast<Marks>(marks | 1u << row);
      }
    }
    kept_marks[tile * tile_marks] = marks;
  }

  // Gradient that flows from the later tiles to the last mark before them.
  Value flowing = 0;
  for (int64_t tile = tile_count(layout) - 1; tile >= 0; --tile) {
    tiles.load(grad_output, tile, Value(0), values);
    const Marks marks = kept_marks[tile * tile_marks];
    Value before_marks = 0;
#pragma unroll
    for (int row = kRows - 1; row >= 0; --row) {
      before_marks = (marks >> row & 1) ? Value(0) : before_marks + values[row];
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
    // The previous tile overwrites these.
    __syncthreads();
#pragma unroll
    for (int row = kRows - 1; row >= 0; --row) {
      const bool marked = marks >> row & 1;
      sum += values[row];
      values[row] = marked ? sum : Value(0);
      sum = marked ? Value(0) : sum;
    }
    tiles.store(values, grad_input, tile);
  }
}

}  // namespace centripetalnet::gpu

// CUDA kernels of corner pooling, free of PyTorch: they need nothing but the CUDA language, and use
// so little of it (shared memory and __syncthreads) that a CPU can run them thread by thread.
//
// A line is one scan line. A thread block takes kLines lines and walks along them in tiles of
// kTileLength positions, counted in the direction of the scan. In a tile every thread scans a
// segment of kRows positions of one line in registers; what crosses segments goes through shared
// memory, what crosses tiles is carried along.
//
// threadIdx.x is the line, so that access is coalesced where lines are adjacent in memory. Where
// the lines themselves are contiguous, a tile is read and written along the lines and turned over
// in shared memory.
#pragma once

#include <cmath>
#include <cstdint>

namespace centripetalnet::gpu {

constexpr int kLines = 32;
constexpr int kSegments = 8;
constexpr int kRows = 16;
constexpr int kTileLength = kSegments * kRows;
constexpr int kThreads = kLines * kSegments;
// Keeps the compiler from spending registers on addresses until few blocks fit.
constexpr int kBlocksPerProcessor = 3;

// Line i begins at element i / inner * length * inner + i % inner; its elements are `inner` apart.
// A reverse scan starts at its end.
struct LineLayout {
  int64_t lines;
  int64_t length;
  int64_t inner;
  bool reverse;
};

// Which positions of a segment became the maximum, one bit each.
using Marks = uint16_t;
static_assert(kRows <= 8 * sizeof(Marks), "Marks holds a bit for every position of a segment");

__host__ __device__ inline int64_t block_count(const LineLayout& layout) {
  return (layout.lines + kLines - 1) / kLines;
}

__host__ __device__ inline int64_t tile_count(const LineLayout& layout) {
  return (layout.length + kTileLength - 1) / kTileLength;
}

// Marks that the backward kernel keeps in global memory. A single tile keeps them in registers.
inline int64_t mark_count(const LineLayout& layout) {
  const int64_t tiles = tile_count(layout);
  return tiles > 1 ? tiles * kSegments * block_count(layout) * kLines : 0;
}

// The order of cummax: NaN is above all numbers, and equal values replace each other.
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

// A tile on its way between global memory and registers. The padding keeps the threads of a warp,
// which read down a column, on different banks of 4 bytes.
template <typename T, bool kContiguous>
struct Staging {
  static constexpr int kPadding = sizeof(T) < 4 ? 4 / sizeof(T) : 1;
  T tile[kLines][kTileLength + kPadding];
};

template <typename T>
struct Staging<T, false> {};

// The lines of one thread block, as one of its threads sees them.
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

  // Fills `values` where has(tile, row). All threads of the block call it together.
  template <typename Value>
  __device__ void load(
      const T* from, int64_t tile, Value (&values)[kRows], Staging<T, kContiguous>& staging) const {
    if constexpr (kContiguous) {
      // Another thread may still be busy with what was staged before.
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

  // The opposite of load.
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

  // Calls visit(address, line of the block, column) for this thread's share of a tile of contiguous
  // lines, so that the threads of a warp have adjacent addresses.
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

// The maximum of all positions before the thread's segment. `carried` is the maximum of all tiles
// before this one, and comes back with this one's. All threads of the block call it together.
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
  // `maxima` is written again for the next tile.
  __syncthreads();
  return before;
}

// The kernels take blocks of (kLines, kSegments) threads, block_count(layout) of them. kContiguous
// needs layout.inner == 1. Sums and comparisons are done in `Value`, which holds every T exactly.

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
// one before the next such element. The first walk marks them, the second, backwards, sums up.
// `kept_marks` has mark_count(layout) elements.
template <typename T, typename Value, bool kContiguous>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) corner_pool_backward_kernel(
    const T* grad_output, const T* input, T* grad_input, Marks* kept_marks, LineLayout layout) {
  __shared__ Staging<T, kContiguous> staging;
  __shared__ Value shared_values[kSegments][kLines];
  __shared__ bool shared_marked[kSegments][kLines];
  const Lines<T, kContiguous> lines(layout);
  const int64_t tiles = tile_count(layout);
  const int64_t padded_lines = block_count(layout) * kLines;
  // A thread reads only what it wrote itself, so this needs no barrier.
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

  // The gradient that flows out of the front of a tile, to the last mark before it.
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

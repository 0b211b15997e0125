// CPU kernels of corner pooling for one instruction set, see cpu_capability.h.
//
// A lane is one scan line of the layout, a row holds one element of each lane. Kernels advance all
// lanes of a block by one row at a time, in plain loops over adjacent elements that the compiler
// vectorises. Contiguous scan lines are transposed to that form in a buffer. Elements are the bits of
// floats: 16-bit floats are compared as fast as integers, and converted only where they are added.
namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling {

// The bits of a float are a sign and a magnitude. As an integer with that sign they have the order of
// cummax: -0 equals 0, and NaN, set to the maximum, is the largest.
template <typename T, typename Bits>
inline Bits order_of(Bits bits) {
  constexpr Bits kMax = std::numeric_limits<Bits>::max();
  const Bits magnitude = bits & kMax;
  const Bits sign = bits >> (8 * sizeof(Bits) - 1);
  const Bits order = (magnitude ^ sign) - sign;
  return magnitude > kInfinity<T> ? kMax : order;
}

// Distance of a row from the first one in memory. Rows are counted in scan direction.
inline int64_t offset_of(int64_t step, const ScanLayout& layout) {
  return (layout.reverse ? layout.length - 1 - step : step) * layout.inner;
}

// Pools rows of `lanes` adjacent elements. The layout's `inner` is the distance to the next row in
// elements. `output` may be `input`. `top` is a buffer for the maximum of each lane. -0 becomes 0.
template <typename T, typename Bits>
void pool_rows(
    const Bits* input, Bits* output, Bits* top, const ScanLayout& layout, int64_t lanes) {
  std::fill_n(top, lanes, std::numeric_limits<Bits>::min());
  for (int64_t step = 0; step < layout.length; ++step) {
    const int64_t offset = offset_of(step, layout);
    const Bits* const from = input + offset;
    Bits* const to = output + offset;
#pragma GCC ivdep
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const Bits order = order_of<T>(from[lane]);
      const Bits best = order > top[lane] ? order : top[lane];
      top[lane] = best;
      const Bits sign = best >> (8 * sizeof(Bits) - 1);
      // Back to sign and magnitude.
      to[lane] = ((best ^ sign) - sign) | (sign & std::numeric_limits<Bits>::min());
    }
  }
}

// Gradient of pool_rows. An element that became the maximum gets the sum of the output gradients
// from its row to the row before the next such element. The first pass marks these elements in
// `grad_input`, which may be `input`, with all bits set; the second, backwards, sums. `top` and
// `sums` are buffers of a value per lane.
template <typename T, typename Bits, typename Value>
void unpool_rows(
    const Bits* grad_output, const Bits* input, Bits* grad_input, Bits* top, Value* sums,
    const ScanLayout& layout, int64_t lanes) {
  std::fill_n(top, lanes, std::numeric_limits<Bits>::min());
  for (int64_t step = 0; step < layout.length; ++step) {
    const int64_t offset = offset_of(step, layout);
    const Bits* const from = input + offset;
    Bits* const marks = grad_input + offset;
#pragma GCC ivdep
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const Bits order = order_of<T>(from[lane]);
      marks[lane] = -(order >= top[lane]);
      top[lane] = order > top[lane] ? order : top[lane];
    }
  }
  std::fill_n(sums, lanes, Value{0});
  for (int64_t step = layout.length - 1; step >= 0; --step) {
    const int64_t offset = offset_of(step, layout);
    const Bits* const from = grad_output + offset;
    Bits* const to = grad_input + offset;
#pragma GCC ivdep
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const Bits mark = to[lane];
      const Value sum = sums[lane] + value_of<T>(from[lane]);
      to[lane] = bits_of<T>(sum) & mark;
      // 0 where there is a mark.
      BitsOf<Value> kept;
      std::memcpy(&kept, &sum, sizeof(sum));
      kept &= ~static_cast<BitsOf<Value>>(mark);
      std::memcpy(&sums[lane], &kept, sizeof(sum));
    }
  }
}

// ---- Contiguous scan lines

template <typename Vector, int... kLane>
inline Vector shuffle(Vector a, Vector b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kLane...);
#else
  return __builtin_shuffle(a, b, Vector{kLane...});
#endif
}

// Transposes a square of 16-byte rows. Every round interleaves row i with row i + kSide / 2. The
// loops are unrolled to keep the rows in registers.
template <typename Vector, int... kLane>
inline void transpose_square(Vector* rows, std::integer_sequence<int, kLane...>) {
  constexpr int kSide = sizeof...(kLane);
#pragma GCC unroll 3
  for (int round = 1; round < kSide; round *= 2) {
    Vector next[kSide];
#pragma GCC unroll 4
    for (int i = 0; i < kSide / 2; ++i) {
      const Vector a = rows[i], b = rows[i + kSide / 2];
      next[2 * i] = shuffle<Vector, (kLane / 2 + kLane % 2 * kSide)...>(a, b);
      next[2 * i + 1] = shuffle<Vector, (kSide / 2 + kLane / 2 + kLane % 2 * kSide)...>(a, b);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) {
      rows[i] = next[i];
    }
  }
}

// Writes to[column * to_step + row] = from[row * from_step + column].
template <typename T>
void transpose(
    const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows, int64_t columns) {
  constexpr int kSide = 16 / sizeof(T);
  typedef T Vector __attribute__((vector_size(16)));
  const int64_t whole_rows = rows - rows % kSide, whole_columns = columns - columns % kSide;
  for (int64_t row = 0; row < whole_rows; row += kSide) {
    for (int64_t column = 0; column < whole_columns; column += kSide) {
      Vector square[kSide];
#pragma GCC unroll 8
      for (int i = 0; i < kSide; ++i) {
        std::memcpy(&square[i], from + (row + i) * from_step + column, 16);
      }
      transpose_square(square, std::make_integer_sequence<int, kSide>());
#pragma GCC unroll 8
      for (int i = 0; i < kSide; ++i) {
        std::memcpy(to + (column + i) * to_step + row, &square[i], 16);
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = row < whole_rows ? whole_columns : 0; column < columns; ++column) {
      to[column * to_step + row] = from[row * from_step + column];
    }
  }
}

// ---- A block: adjacent lanes of the layout or, if its `inner` is 1, contiguous ones

// `rows` is a buffer for the elements of contiguous lanes.
template <typename T, typename Bits>
void pool(
    const Bits* input, Bits* output, Bits* top, Bits* rows, const ScanLayout& layout,
    int64_t lanes) {
  if (layout.inner > 1) {
    return pool_rows<T>(input, output, top, layout, lanes);
  }
  const int64_t length = layout.length;
  transpose(input, length, rows, lanes, lanes, length);
  pool_rows<T>(rows, rows, top, {1, length, lanes, layout.reverse}, lanes);
  transpose(rows, lanes, output, length, length, lanes);
}

// `rows` is twice as large as for pool.
template <typename T, typename Bits, typename Value>
void unpool(
    const Bits* grad_output, const Bits* input, Bits* grad_input, Bits* top, Value* sums,
    Bits* rows, const ScanLayout& layout, int64_t lanes) {
  if (layout.inner > 1) {
    return unpool_rows<T>(grad_output, input, grad_input, top, sums, layout, lanes);
  }
  const int64_t length = layout.length;
  Bits* const grads = rows + length * lanes;
  transpose(grad_output, length, grads, lanes, lanes, length);
  transpose(input, length, rows, lanes, lanes, length);
  unpool_rows<T>(grads, rows, rows, top, sums, {1, length, lanes, layout.reverse}, lanes);
  transpose(rows, lanes, grad_input, length, length, lanes);
}

}  // namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling

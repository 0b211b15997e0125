// CPU kernels of corner pooling for one instruction set. corner_pool_cpu.cpp includes this file
// once for each, after the headers that the kernels need, see cpu_capability.h.
//
// A lane is one scan line. Kernels advance all lanes of a block by one row at a time, in plain loops
// over adjacent elements that the compiler vectorises. Contiguous scan lines are transposed to that
// form in a buffer that fits into the L1 cache.
namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling {

// How elements are compared and summed. The order is that of cummax: NaN is larger than any number,
// and a later equal value replaces an earlier one. The forward pass compares ranks, which convert
// back to values. The backward pass compares keys, which are equal exactly where cummax finds values
// equal.
template <typename T>
struct Element {
  using Key = T;
  using Sum = T;

  static Key lowest() { return -std::numeric_limits<T>::infinity(); }
  static Key rank(T value) { return value; }
  static T value(Key rank) { return rank; }
  static Key key(T value) { return value; }
  static bool reaches(Key candidate, Key best) {
    return (candidate >= best) | (candidate != candidate);
  }
  static T mark(bool is_top) { return is_top; }
  static bool is_marked(T mark) { return mark != 0; }
};

// 16-bit floats are compared as integers, and summed in float.
template <typename T, int16_t kInfinityBits>
struct HalfElement {
  using Key = int16_t;
  using Sum = float;
  static constexpr uint16_t kSignedNans = 0x7fff - kInfinityBits;

  static Key lowest() { return std::numeric_limits<int16_t>::min(); }
  // With the magnitude bits of negative numbers flipped, integers are in the order of the floats.
  // Only NaNs with a sign are at the lower end; subtracting their count wraps them to the top.
  static Key rank(T value) { return static_cast<uint16_t>(ordered(value.x)) - kSignedNans; }
  static T value(Key rank) {
    return T(ordered(static_cast<uint16_t>(rank) + kSignedNans), T::from_bits());
  }
  // The magnitude with the sign applied, so that -0 and 0 are equal. Then NaNs with a sign wrap as
  // in rank(), by one step more because one zero is gone. All NaNs are clamped to the smallest one.
  static Key key(T value) {
    const auto sign = static_cast<uint16_t>(static_cast<int16_t>(value.x) >> 15);
    const uint16_t signed_magnitude = ((value.x & 0x7fff) ^ sign) - sign;
    const int16_t wrapped = static_cast<uint16_t>(signed_magnitude - (kSignedNans + 1));
    constexpr int16_t kNan = kInfinityBits - kSignedNans;
    return wrapped < kNan ? wrapped : kNan;
  }
  static bool reaches(Key candidate, Key best) { return candidate >= best; }
  static T mark(bool is_top) { return T(is_top, T::from_bits()); }
  static bool is_marked(T mark) { return mark.x != 0; }

 private:
  static int16_t ordered(int16_t bits) { return bits ^ ((bits >> 15) & 0x7fff); }
};
template <>
struct Element<c10::BFloat16> : HalfElement<c10::BFloat16, 0x7f80> {};
template <>
struct Element<c10::Half> : HalfElement<c10::Half, 0x7c00> {};

// Pools `length` rows of `lanes` adjacent elements. `step` is the distance in elements to the next
// row of the scan; it is negative for a reverse scan. `output` may be `input`.
template <typename T>
void pool_rows(
    const T* input, T* output, Scratch& scratch, int64_t length, int64_t lanes, int64_t step) {
  using E = Element<T>;
  auto* const top = scratch.state.template array<typename E::Key>(lanes);
  std::fill_n(top, lanes, E::lowest());
  for (int64_t row = 0; row < length; ++row) {
    const T* const from = input + row * step;
    T* const to = output + row * step;
#pragma GCC ivdep
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const auto candidate = E::rank(from[lane]);
      top[lane] = E::reaches(candidate, top[lane]) ? candidate : top[lane];
      to[lane] = E::value(top[lane]);
    }
  }
}

// Gradient of pool_rows. An element that became the maximum gets the sum of the output gradients
// from its row to the row before the next such element. The first pass marks these elements in
// `grad_input`, which may be `input`; the second, backwards, sums.
template <typename T>
void unpool_rows(
    const T* grad_output, const T* input, T* grad_input, Scratch& scratch, int64_t length,
    int64_t lanes, int64_t step) {
  using E = Element<T>;
  using Sum = typename E::Sum;
  auto* const top = scratch.state.template array<typename E::Key>(lanes);
  std::fill_n(top, lanes, E::lowest());
  for (int64_t row = 0; row < length; ++row) {
    const T* const from = input + row * step;
    T* const marks = grad_input + row * step;
#pragma GCC ivdep
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const auto candidate = E::key(from[lane]);
      const bool is_top = E::reaches(candidate, top[lane]);
      top[lane] = is_top ? candidate : top[lane];
      marks[lane] = E::mark(is_top);
    }
  }
  auto* const sums = scratch.state.template array<Sum>(lanes);
  std::fill_n(sums, lanes, Sum(0));
  for (int64_t row = length - 1; row >= 0; --row) {
    const T* const from = grad_output + row * step;
    T* const to = grad_input + row * step;
#pragma GCC ivdep
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const bool is_top = E::is_marked(to[lane]);
      const Sum sum = sums[lane] + static_cast<Sum>(from[lane]);
      to[lane] = static_cast<T>(is_top ? sum : Sum(0));
      sums[lane] = is_top ? Sum(0) : sum;
    }
  }
}

// ---- Contiguous scan lines

template <int kBytes>
struct Bits;
template <>
struct Bits<2> {
  typedef int16_t Vector __attribute__((vector_size(16)));
};
template <>
struct Bits<4> {
  typedef int32_t Vector __attribute__((vector_size(16)));
};
template <>
struct Bits<8> {
  typedef int64_t Vector __attribute__((vector_size(16)));
};

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
  const int64_t whole_rows = rows - rows % kSide, whole_columns = columns - columns % kSide;
  for (int64_t row = 0; row < whole_rows; row += kSide) {
    for (int64_t column = 0; column < whole_columns; column += kSide) {
      typename Bits<sizeof(T)>::Vector square[kSide];
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

// Pools `count` contiguous scan lines of `length` elements.
template <typename T>
void pool_lines(
    const T* input, T* output, Scratch& scratch, int64_t length, int64_t count, bool reverse) {
  T* const rows = scratch.lines.template array<T>(length * count);
  transpose(input, length, rows, count, count, length);
  T* const first = reverse ? rows + (length - 1) * count : rows;
  pool_rows<T>(first, first, scratch, length, count, reverse ? -count : count);
  transpose(rows, count, output, length, length, count);
}

// Gradient of pool_lines.
template <typename T>
void unpool_lines(
    const T* grad_output, const T* input, T* grad_input, Scratch& scratch, int64_t length,
    int64_t count, bool reverse) {
  T* const grads = scratch.lines.template array<T>(2 * length * count);
  T* const rows = grads + length * count;
  transpose(grad_output, length, grads, count, count, length);
  transpose(input, length, rows, count, count, length);
  const int64_t start = reverse ? (length - 1) * count : 0;
  unpool_rows<T>(
      grads + start, rows + start, rows + start, scratch, length, count,
      reverse ? -count : count);
  transpose(rows, count, grad_input, length, length, count);
}

}  // namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling

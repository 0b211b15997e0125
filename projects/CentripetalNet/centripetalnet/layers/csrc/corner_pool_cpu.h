// CPU kernels of corner pooling.
//
// A lane is one scan line. Kernels advance as many lanes at once as fit in 16 bytes, the one vector
// size that every common instruction set has, with the vector types of GCC and Clang. In rows of
// adjacent lanes these are plain loads (pool_rows); where a scan line itself is contiguous, squares
// of lines x columns are transposed in registers first (pool_lines).
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace centripetalnet::cpu {

template <typename Element>
struct VectorOf {
  typedef Element Type __attribute__((vector_size(16)));
};
template <typename Element>
using Vector = typename VectorOf<Element>::Type;

template <typename To, typename From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Lanes<T> is how the lanes of one vector are compared and summed. The order is that of cummax: NaN
// is above all numbers, and equal values replace each other. The forward pass compares ranks, which
// can be turned back into values, the backward pass keys, which are equal where cummax finds values
// equal. A `Mask` has all bits of a lane set where something holds.
template <typename T, typename Bits>
struct FloatLanes {
  using Element = T;
  using Data = Vector<T>;
  using Mask = Vector<Bits>;
  using Key = Data;
  using Sum = Data;
  static constexpr int kSize = 16 / sizeof(T);

  static Key lowest() { return Key{} - std::numeric_limits<T>::infinity(); }
  static Key rank(Data data) { return data; }
  static Data value(Key rank) { return rank; }
  static Key key(Data data) { return data; }
  static Mask reaches(Key candidate, Key best) {
    return (candidate >= best) | (candidate != candidate);
  }
  static Key maximum(Key candidate, Key best) {
    const Mask mask = reaches(candidate, best);
    return bits_as<Key>((bits_as<Mask>(candidate) & mask) | (bits_as<Mask>(best) & ~mask));
  }
  // Adds `grad`; where `starts`, the sum is returned and begins again from zero.
  static Data collect(Sum& sum, Data grad, Mask starts) {
    const Mask total = bits_as<Mask>(sum + grad);
    sum = bits_as<Sum>(total & ~starts);
    return bits_as<Data>(total & starts);
  }
};

// 16-bit floats are compared as integers, which needs no conversion to float and fits twice as many
// lanes in a vector. Sums are in float.
template <typename T, int16_t kInfinityBits>
struct HalfLanes {
  using Element = int16_t;
  using Data = Vector<int16_t>;
  using Mask = Vector<int16_t>;
  using Key = Vector<int16_t>;
  using Unsigned = Vector<uint16_t>;
  using Floats = Vector<float>;
  static constexpr int kSize = 8;
  static constexpr uint16_t kSignedNans = 0x7fff - kInfinityBits;
  struct Sum {
    Floats low, high;
  };

  static Key lowest() { return Key{} + std::numeric_limits<int16_t>::min(); }
  // With the bits of negative numbers turned over, integers are in the order of the numbers. Only
  // the NaNs with a sign are at the lower end: stepping back by their count wraps them to the top.
  static Key rank(Data data) {
    const Data ordered = data ^ ((data >> 15) & 0x7fff);
    return bits_as<Key>(bits_as<Unsigned>(ordered) - kSignedNans);
  }
  static Data value(Key rank) {
    const auto ordered = bits_as<Data>(bits_as<Unsigned>(rank) + kSignedNans);
    return ordered ^ ((ordered >> 15) & 0x7fff);
  }
  // The magnitude with the sign applied, so that there is one zero; and one NaN.
  static Key key(Data data) {
    const Data magnitude = data & 0x7fff;
    const Mask sign = data >> 15;
    const Mask is_nan = magnitude > kInfinityBits;
    const auto top_bit = std::numeric_limits<int16_t>::min();
    return (((magnitude ^ sign) - sign) | is_nan) & ~(is_nan & top_bit);
  }
  static Mask reaches(Key candidate, Key best) { return candidate >= best; }
  static Key maximum(Key candidate, Key best) { return candidate > best ? candidate : best; }
  static Data collect(Sum& sum, Data grad, Mask starts) {
    T values[kSize];
    std::memcpy(values, &grad, sizeof(values));
    for (int lane = 0; lane < kSize / 2; ++lane) {
      sum.low[lane] += static_cast<float>(values[lane]);
      sum.high[lane] += static_cast<float>(values[lane + kSize / 2]);
    }
    for (int lane = 0; lane < kSize / 2; ++lane) {
      values[lane] = static_cast<T>(starts[lane] ? sum.low[lane] : 0.0f);
      values[lane + kSize / 2] = static_cast<T>(starts[lane + kSize / 2] ? sum.high[lane] : 0.0f);
      sum.low[lane] = starts[lane] ? 0.0f : sum.low[lane];
      sum.high[lane] = starts[lane + kSize / 2] ? 0.0f : sum.high[lane];
    }
    return bits_as<Data>(values);
  }
};

struct BFloat16Lanes : HalfLanes<c10::BFloat16, 0x7f80> {
  using Words = Vector<uint32_t>;

  // bfloat16 is the upper half of float. So of two lanes in a word one is cut off and the other
  // shifted up. Which of them comes first does not matter, as they go back the same way.
  static Data collect(Sum& sum, Data grad, Mask starts) {
    const auto grads = bits_as<Words>(grad);
    const auto begins = bits_as<Vector<int32_t>>(starts);
    const Floats low = sum.low + bits_as<Floats>(grads << 16);
    const Floats high = sum.high + bits_as<Floats>(grads & 0xffff0000);
    sum.low = bits_as<Floats>(bits_as<Words>(low) & ~bits_as<Words>((begins << 16) >> 16));
    sum.high = bits_as<Floats>(bits_as<Words>(high) & ~bits_as<Words>(begins >> 16));
    return bits_as<Data>((round(low) >> 16) | (round(high) & 0xffff0000)) & starts;
  }

 private:
  // To the nearest bfloat16, ties to even, in the upper half. A sum that is NaN has the payload of
  // a bfloat16 or the default one, no bits below, so that rounding cannot overflow it.
  static Words round(Floats value) {
    const auto bits = bits_as<Words>(value);
    return bits + (((bits >> 16) & 1) + 0x7fff);
  }
};

template <typename T>
struct LanesOf;
template <>
struct LanesOf<float> {
  using Type = FloatLanes<float, int32_t>;
};
template <>
struct LanesOf<double> {
  using Type = FloatLanes<double, int64_t>;
};
template <>
struct LanesOf<c10::BFloat16> {
  using Type = BFloat16Lanes;
};
template <>
struct LanesOf<c10::Half> {
  using Type = HalfLanes<c10::Half, 0x7c00>;
};
template <typename T>
using Lanes = typename LanesOf<T>::Type;

template <typename T>
inline typename Lanes<T>::Data load(const T* from, int64_t count) {
  typename Lanes<T>::Data data{};
  if (count >= Lanes<T>::kSize) {
    std::memcpy(&data, from, sizeof(data));
  } else {
    std::memcpy(&data, from, count * sizeof(T));
  }
  return data;
}

template <typename T>
inline void store(typename Lanes<T>::Data data, T* to, int64_t count) {
  if (count >= Lanes<T>::kSize) {
    std::memcpy(to, &data, sizeof(data));
  } else {
    std::memcpy(to, &data, count * sizeof(T));
  }
}

// Calls visit(slot, lane, count) for vectors that cover `lanes` adjacent lanes. Where they do not
// divide, the last one overlaps the one before; it has a slot of its own, so that its lanes are
// computed twice and not advanced twice.
template <int kSize, typename Visit>
inline void for_each_vector(int64_t lanes, const Visit& visit) {
  const int64_t whole = lanes / kSize;
  for (int64_t slot = 0; slot < whole; ++slot) {
    visit(slot, slot * kSize, int64_t{kSize});
  }
  if (whole * kSize < lanes) {
    visit(whole, std::max<int64_t>(lanes - kSize, 0), std::min<int64_t>(lanes, kSize));
  }
}

template <typename T>
constexpr int64_t vectors(int64_t lanes) {
  return (lanes + Lanes<T>::kSize - 1) / Lanes<T>::kSize;
}

// Hardware prefetchers do not follow short rows that are walked backwards, so the kernels ask for
// what they will read and write soon. 64 is the common size of a cache line; any other is only
// slower. Addresses are numbers because they may lie beyond the tensor's end.
inline void prefetch(uintptr_t address, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + offset));
  }
}

template <typename T>
inline void prefetch(const T* base, int64_t first, int64_t count) {
  prefetch(reinterpret_cast<uintptr_t>(base) + first * sizeof(T), count * sizeof(T));
}

// How many rows ahead, in elements: about as far as memory is slow.
template <typename T>
inline int64_t prefetch_distance(int64_t lanes, int64_t step) {
  constexpr int64_t kBytes = 4096;
  return std::max<int64_t>(1, kBytes / (lanes * int64_t{sizeof(T)})) * step;
}

// Pools `length` rows of `lanes` adjacent elements. `step` is the distance to the next row of the
// scan, negative where it runs backwards. `best` has room for vectors<T>(lanes).
template <typename T>
void pool_rows(
    const T* input, T* output, typename Lanes<T>::Key* best, int64_t length, int64_t lanes,
    int64_t step) {
  using L = Lanes<T>;
  std::fill_n(best, vectors<T>(lanes), L::lowest());
  const int64_t ahead = prefetch_distance<T>(lanes, step);
  for (int64_t row = 0; row < length; ++row, input += step, output += step) {
    prefetch(input, ahead, lanes);
    prefetch(output, ahead, lanes);
    for_each_vector<L::kSize>(lanes, [&](int64_t slot, int64_t lane, int64_t count) {
      best[slot] = L::maximum(L::rank(load(input + lane, count)), best[slot]);
      store(L::value(best[slot]), output + lane, count);
    });
  }
}

// The gradient of pool_rows. An element that became the maximum gets the sum of the output
// gradients from its row to the row before the next such element. So a first pass marks them in
// `starts`, which has room for length * vectors<T>(lanes), and a second, backwards, sums up.
template <typename T>
void unpool_rows(
    const T* grad_output, const T* input, T* grad_input, typename Lanes<T>::Mask* starts,
    typename Lanes<T>::Key* best, typename Lanes<T>::Sum* sums, int64_t length, int64_t lanes,
    int64_t step) {
  using L = Lanes<T>;
  const int64_t slots = vectors<T>(lanes);
  const int64_t ahead = prefetch_distance<T>(lanes, step);
  std::fill_n(best, slots, L::lowest());
  for (int64_t row = 0; row < length; ++row) {
    prefetch(input, row * step + ahead, lanes);
    for_each_vector<L::kSize>(lanes, [&](int64_t slot, int64_t lane, int64_t count) {
      const auto candidate = L::key(load(input + row * step + lane, count));
      starts[row * slots + slot] = L::reaches(candidate, best[slot]);
      best[slot] = L::maximum(candidate, best[slot]);
    });
  }
  std::fill_n(sums, slots, typename L::Sum{});
  for (int64_t row = length - 1; row >= 0; --row) {
    prefetch(grad_output, row * step - ahead, lanes);
    prefetch(grad_input, row * step - ahead, lanes);
    for_each_vector<L::kSize>(lanes, [&](int64_t slot, int64_t lane, int64_t count) {
      const auto grad = load(grad_output + row * step + lane, count);
      store(
          L::collect(sums[slot], grad, starts[row * slots + slot]),
          grad_input + row * step + lane, count);
    });
  }
}

template <typename Data, int... kIndex>
inline Data shuffle(Data a, Data b, std::integer_sequence<int, kIndex...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kIndex...);
#else
  using Index = std::conditional_t<
      sizeof(a[0]) == 2, int16_t, std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>>;
  return __builtin_shuffle(a, b, Vector<Index>{kIndex...});
#endif
}

template <int kSize, int kFirst, int... kIndex>
constexpr auto interleaved(std::integer_sequence<int, kIndex...>) {
  return std::integer_sequence<int, (kFirst + kIndex / 2 + (kIndex % 2) * kSize)...>();
}

// Every round interleaves row i with row i + kSize / 2; log2(kSize) rounds transpose a square.
template <int kSize, typename Data>
inline void transpose(Data (&rows)[kSize]) {
  constexpr auto lanes = std::make_integer_sequence<int, kSize>();
  Data next[kSize];
  for (int round = 1; round < kSize; round *= 2) {
    for (int i = 0; i < kSize / 2; ++i) {
      next[2 * i] = shuffle(rows[i], rows[i + kSize / 2], interleaved<kSize, 0>(lanes));
      next[2 * i + 1] =
          shuffle(rows[i], rows[i + kSize / 2], interleaved<kSize, kSize / 2>(lanes));
    }
    std::copy(next, next + kSize, rows);
  }
}

// Up to kSize adjacent scan lines of `length` contiguous elements, read and written in squares of
// lines x columns. Where there are fewer lines, the last one stands in for the missing ones.
template <typename T>
struct Lines {
  using Data = typename Lanes<T>::Data;
  static constexpr int kSize = Lanes<T>::kSize;
  int64_t length;
  int64_t count;

  int64_t offset(int line) const { return std::min<int64_t>(line, count - 1) * length; }
  // While the square at `column` is computed, ask for as much of these or of the next kSize lines,
  // in order of memory.
  void prefetch_these(const T* lines, int64_t column) const {
    prefetch(lines, column * kSize, kSize * kSize);
  }
  void prefetch_next(const T* lines, int64_t column) const {
    prefetch(lines, (length + column) * kSize, kSize * kSize);
  }
  int64_t columns(int64_t column) const { return std::min<int64_t>(length - column, kSize); }

  void load_columns(const T* from, int64_t column, Data (&data)[kSize]) const {
    const int64_t width = columns(column);
    for (int line = 0; line < kSize; ++line) {
      data[line] = load(from + offset(line) + column, width);
    }
    transpose(data);
  }
  void store_columns(Data (&data)[kSize], T* to, int64_t column) const {
    const int64_t width = columns(column);
    transpose(data);
    for (int line = 0; line < kSize; ++line) {
      store(data[line], to + offset(line) + column, width);
    }
  }
};

// Calls visit(column) for the first column of every square, and visits the squares backwards where
// `backwards`.
template <int kSize, bool kBackwards, typename Visit>
inline void for_each_square(int64_t length, const Visit& visit) {
  const int64_t squares = (length + kSize - 1) / kSize;
  for (int64_t square = 0; square < squares; ++square) {
    visit((kBackwards ? squares - 1 - square : square) * kSize);
  }
}

// Calls visit(i) for the first `width` columns of a square. Whole squares get a loop of constant
// length, which keeps their vectors in registers.
template <int kSize, bool kBackwards, typename Visit>
inline void for_each_column(int64_t width, const Visit& visit) {
  if (width == kSize) {
    for (int i = 0; i < kSize; ++i) {
      visit(kBackwards ? kSize - 1 - i : i);
    }
  } else {
    for (int i = 0; i < width; ++i) {
      visit(kBackwards ? static_cast<int>(width) - 1 - i : i);
    }
  }
}

// Pools up to kSize contiguous scan lines.
template <typename T, bool kReverse>
void pool_lines(const T* input, T* output, const Lines<T>& lines) {
  using L = Lanes<T>;
  auto best = L::lowest();
  for_each_square<L::kSize, kReverse>(lines.length, [&](int64_t column) {
    lines.prefetch_next(input, column);
    lines.prefetch_next(output, column);
    typename L::Data data[L::kSize];
    lines.load_columns(input, column, data);
    for_each_column<L::kSize, kReverse>(lines.columns(column), [&](int i) {
      best = L::maximum(L::rank(data[i]), best);
      data[i] = L::value(best);
    });
    lines.store_columns(data, output, column);
  });
}

// The gradient of pool_lines, see unpool_rows. `starts` has room for lines.length.
template <typename T, bool kReverse>
void unpool_lines(
    const T* grad_output, const T* input, T* grad_input, typename Lanes<T>::Mask* starts,
    const Lines<T>& lines) {
  using L = Lanes<T>;
  auto best = L::lowest();
  for_each_square<L::kSize, kReverse>(lines.length, [&](int64_t column) {
    lines.prefetch_these(grad_output, column);
    lines.prefetch_these(grad_input, column);
    typename L::Data data[L::kSize];
    lines.load_columns(input, column, data);
    for_each_column<L::kSize, kReverse>(lines.columns(column), [&](int i) {
      const auto candidate = L::key(data[i]);
      starts[column + i] = L::reaches(candidate, best);
      best = L::maximum(candidate, best);
    });
  });
  typename L::Sum sum{};
  for_each_square<L::kSize, !kReverse>(lines.length, [&](int64_t column) {
    lines.prefetch_next(input, column);
    typename L::Data data[L::kSize];
    lines.load_columns(grad_output, column, data);
    for_each_column<L::kSize, !kReverse>(lines.columns(column), [&](int i) {
      data[i] = L::collect(sum, data[i], starts[column + i]);
    });
    lines.store_columns(data, grad_input, column);
  });
}

}  // namespace centripetalnet::cpu

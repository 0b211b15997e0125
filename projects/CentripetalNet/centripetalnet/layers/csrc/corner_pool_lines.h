// Corner pooling of contiguous scan lines, see corner_pool_cpu.h.
namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling {

// A group is 16 bytes of a vector, the unit in which instruction sets shuffle cheaply. A tile has
// as many lines as a group has elements, and as many columns as a vector has. Transposed, group g
// of vector i holds column i + g kLines of all lines. So every group scans kLines adjacent columns,
// and is then combined with the result of the groups before it.
constexpr int kGroups = kVectorBytes / 16;

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

// Shuffle indices: of every group the elements from kFirst on, alternating between two vectors.
template <int kGroup, int kFirst, int... kIndex>
constexpr auto interleaved(std::integer_sequence<int, kIndex...>) {
  constexpr int kSize = sizeof...(kIndex);
  return std::integer_sequence<
      int, (kIndex / kGroup * kGroup + kFirst + kIndex % kGroup / 2 + kIndex % 2 * kSize)...>();
}

template <int kOffset, int... kIndex>
constexpr auto from_offset(std::integer_sequence<int, kIndex...>) {
  return std::integer_sequence<int, (kIndex + kOffset)...>();
}

// Every round interleaves row i with row i + kRows / 2. After log2(kRows) rounds each group's
// kRows x kRows square is transposed.
template <int kRows, typename Data>
inline void transpose(Data (&rows)[kRows]) {
  constexpr auto lanes = std::make_integer_sequence<int, kGroups * kRows>();
  for (int round = 1; round < kRows; round *= 2) {
    Data next[kRows];
    for (int i = 0; i < kRows / 2; ++i) {
      next[2 * i] = shuffle(rows[i], rows[i + kRows / 2], interleaved<kRows, 0>(lanes));
      next[2 * i + 1] =
          shuffle(rows[i], rows[i + kRows / 2], interleaved<kRows, kRows / 2>(lanes));
    }
    std::copy(next, next + kRows, rows);
  }
}

// Shifts groups by kDistance in scan direction; the last groups of `before` fill the free places.
template <int kDistance, bool kReverse, typename Data>
inline Data shift_groups(Data data, Data before) {
  constexpr int kSize = sizeof(Data) / sizeof(data[0]);
  constexpr int kMoved = kSize / kGroups * kDistance;
  constexpr auto lanes = std::make_integer_sequence<int, kSize>();
  if constexpr (kReverse) {
    return shuffle(data, before, from_offset<kMoved>(lanes));
  } else {
    return shuffle(before, data, from_offset<kSize - kMoved>(lanes));
  }
}

template <int kDistance, bool kReverse, typename T>
inline Sums<T> shift_groups(Sums<T> sums, const Sums<T>& before) {
  for (int part = 0; part < Lanes<T>::kParts; ++part) {
    sums.parts[part] =
        shift_groups<kDistance, kReverse>(sums.parts[part], before.parts[part]);
  }
  return sums;
}

// Maximum of everything before each group, from the maxima of this tile's groups and `before`, the
// maxima up to each group of the previous tile.
template <typename L, bool kReverse>
inline typename L::Data maxima_before(typename L::Data maxima, typename L::Data before) {
  auto result = shift_groups<1, kReverse>(maxima, before);
  if constexpr (kGroups > 1) {
    result = L::maximum(result, shift_groups<1, kReverse>(result, L::lowest()));
  }
  if constexpr (kGroups > 2) {
    result = L::maximum(result, shift_groups<2, kReverse>(result, L::lowest()));
  }
  return result;
}

// Sums that flow into each group from the groups before it. `sums` is each group's own outgoing
// sum, `before` the final sums of the previous tile. Where `passes` is set, a group has no mark and
// the incoming sum flows through it.
template <typename T, bool kReverse>
inline Sums<T> sums_before(
    const Sums<T>& sums, typename Lanes<T>::Data passes, const Sums<T>& before) {
  constexpr typename Lanes<T>::Data kNone{};
  auto result = shift_groups<1, kReverse>(sums, before);
  if constexpr (kGroups > 1) {
    auto through = shift_groups<1, kReverse>(passes, kNone);
    result.add_where(through, shift_groups<1, kReverse>(result, Sums<T>{}));
    if constexpr (kGroups > 2) {
      through &= shift_groups<1, kReverse>(through, kNone);
      result.add_where(through, shift_groups<2, kReverse>(result, Sums<T>{}));
    }
  }
  return result;
}

// Up to kLines adjacent scan lines of `length` elements. Missing lines repeat the last one.
template <typename T>
struct Lines {
  using Data = typename Lanes<T>::Data;
  static constexpr int kLines = 16 / sizeof(T);
  static constexpr int kColumns = Lanes<T>::kSize;

  Lines(int64_t length, int64_t count)
      : length(length),
        tiles((length + kColumns - 1) / kColumns),
        ahead(std::max<int64_t>(1, kAhead / length)) {
    for (int line = 0; line < kLines; ++line) {
      first[line] = std::min<int64_t>(line, count - 1) * length;
    }
  }

  // Prefetches, in memory order, the i-th tile's share of the lines `blocks` * kLines further on.
  void prefetch_tile(const T* lines, int64_t i, int64_t blocks) const {
    prefetch(lines, (blocks * length + i * kColumns) * kLines, kColumns * kLines);
  }

  // Columns beyond the lines' end are `fill`. Complete tiles have their own loop, because with a
  // variable length the compiler keeps vectors in memory.
  void load_tile(const T* from, int64_t tile, Data fill, Data (&data)[kLines]) const {
    from += tile * kColumns;
    const int64_t columns = length - tile * kColumns;
    if (columns >= kColumns) {
      for (int line = 0; line < kLines; ++line) {
        data[line] = load(from + first[line], kColumns);
      }
    } else {
      for (int line = 0; line < kLines; ++line) {
        data[line] = load(from + first[line], columns, fill);
      }
    }
    transpose(data);
  }
  void store_tile(Data (&data)[kLines], T* to, int64_t tile) const {
    transpose(data);
    to += tile * kColumns;
    const int64_t columns = length - tile * kColumns;
    if (columns >= kColumns) {
      for (int line = 0; line < kLines; ++line) {
        store(data[line], to + first[line], kColumns);
      }
    } else {
      for (int line = 0; line < kLines; ++line) {
        store(data[line], to + first[line], columns);
      }
    }
  }

  // Prefetch distance in elements of a line, tuned to memory latency.
  static constexpr int64_t kAhead = 8192 / sizeof(T) / kLines;
  int64_t length, tiles, ahead;
  int64_t first[kLines];
};

// Index of the i-th of `count` elements in scan order.
template <bool kReverse>
constexpr int64_t in_order(int64_t i, int64_t count) {
  return kReverse ? count - 1 - i : i;
}

template <typename T, bool kReverse>
[[gnu::flatten]] void pool_lines_along(const T* input, T* output, const Lines<T>& lines) {
  using L = Lanes<T>;
  constexpr int kLines = Lines<T>::kLines;
  auto best = L::lowest();
  for (int64_t i = 0; i < lines.tiles; ++i) {
    const int64_t tile = in_order<kReverse>(i, lines.tiles);
    lines.prefetch_tile(input, i, lines.ahead);
    lines.prefetch_tile(output, i, lines.ahead);
    typename L::Data data[kLines];
    lines.load_tile(input, tile, L::minus_infinity(), data);
    typename L::Data tops[kLines];
    auto top = L::lowest();
    for (int j = 0; j < kLines; ++j) {
      const int64_t k = in_order<kReverse>(j, kLines);
      top = L::maximum(L::key(data[k]), top);
      tops[k] = top;
    }
    const auto before = maxima_before<L, kReverse>(top, best);
    best = L::maximum(top, before);
    for (int k = 0; k < kLines; ++k) {
      data[k] = L::value(L::maximum(tops[k], before));
    }
    lines.store_tile(data, output, tile);
  }
}

template <typename T, bool kReverse>
[[gnu::flatten]] void unpool_lines_along(
    const T* grad_output, const T* input, T* grad_input, Scratch& scratch, const Lines<T>& lines) {
  using L = Lanes<T>;
  using Mask = typename L::Data;
  constexpr int kLines = Lines<T>::kLines;
  auto* marks = scratch.marks.template array<Mask>(lines.tiles * kLines);
  auto best = L::lowest();
  for (int64_t i = 0; i < lines.tiles; ++i) {
    const int64_t tile = in_order<kReverse>(i, lines.tiles);
    lines.prefetch_tile(grad_output, i, lines.ahead - 1);
    lines.prefetch_tile(grad_input, i, lines.ahead - 1);
    typename L::Data data[kLines];
    lines.load_tile(input, tile, L::minus_infinity(), data);
    typename L::Data tops[kLines];
    auto top = L::lowest();
    for (int j = 0; j < kLines; ++j) {
      const int64_t k = in_order<kReverse>(j, kLines);
      data[k] = L::key(data[k]);
      top = L::maximum(data[k], top);
      tops[k] = top;
    }
    const auto before = maxima_before<L, kReverse>(top, best);
    best = L::maximum(top, before);
    // An element became the maximum if the maximum up to it equals the element.
    for (int k = 0; k < kLines; ++k) {
      marks[tile * kLines + k] = L::maximum(tops[k], before) == data[k];
    }
  }
  Sums<T> sums{};
  for (int64_t i = 0; i < lines.tiles; ++i) {
    const int64_t tile = in_order<!kReverse>(i, lines.tiles);
    lines.prefetch_tile(input, i, lines.ahead);
    typename L::Data data[kLines];
    lines.load_tile(grad_output, tile, typename L::Data{}, data);
    const Mask* starts = marks + tile * kLines;
    if constexpr (kGroups > 1) {
      // A group's outgoing sum: the gradients after its last mark in the order of this pass.
      Sums<T> open{};
      Mask passes = ~Mask{};
      for (int j = 0; j < kLines; ++j) {
        const int64_t k = in_order<kReverse>(j, kLines);
        passes &= ~starts[k];
        open.add(data[k] & passes);
      }
      sums = sums_before<T, !kReverse>(open, passes, sums);
    }
    for (int j = 0; j < kLines; ++j) {
      const int64_t k = in_order<!kReverse>(j, kLines);
      data[k] = sums.collect(data[k], starts[k]);
    }
    lines.store_tile(data, grad_input, tile);
  }
}

// Pools up to Lines<T>::kLines contiguous scan lines.
template <typename T>
void pool_lines(
    const T* input, T* output, Scratch&, int64_t length, int64_t count, bool reverse) {
  const Lines<T> lines(length, count);
  reverse ? pool_lines_along<T, true>(input, output, lines)
          : pool_lines_along<T, false>(input, output, lines);
}

// Gradient of pool_lines, see unpool_rows.
template <typename T>
void unpool_lines(
    const T* grad_output, const T* input, T* grad_input, Scratch& scratch, int64_t length,
    int64_t count, bool reverse) {
  const Lines<T> lines(length, count);
  reverse ? unpool_lines_along<T, true>(grad_output, input, grad_input, scratch, lines)
          : unpool_lines_along<T, false>(grad_output, input, grad_input, scratch, lines);
}

}  // namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling

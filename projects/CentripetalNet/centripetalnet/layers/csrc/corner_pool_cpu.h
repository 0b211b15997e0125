// CPU kernels of corner pooling for one instruction set. corner_pool_cpu.cpp includes this file
// once for each, after the headers that the kernels need, see cpu_capability.h.
//
// A lane is one scan line. Kernels process one vector of lanes at a time, with the vector types of
// GCC and Clang. Rows of adjacent lanes are loaded directly (pool_rows). Contiguous scan lines are
// loaded as tiles of lines x columns and transposed in registers (pool_lines). Functions on single
// vectors must be inlined, as passing a vector through memory costs more than the arithmetic;
// therefore the kernels have gnu::flatten.
namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling {

constexpr int kVectorBytes = CENTRIPETALNET_VECTOR_BYTES;

template <typename Element>
struct VectorOf {
  typedef Element Type __attribute__((vector_size(CENTRIPETALNET_VECTOR_BYTES)));
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

// Lanes<T> defines how the lanes of one vector are compared and summed. The order is that of
// cummax: NaN is larger than any number, and a later equal value replaces an earlier one. The
// forward pass compares ranks, which convert back to values. The backward pass compares keys, which
// are equal exactly where cummax finds values equal. A `Mask` has all bits of a lane set for true.
// Gradients are summed in kParts vectors of `Floats`: part() converts one of them from Data, join()
// all of them to Data.
template <typename T, typename Bits>
struct FloatLanes {
  using Data = Vector<T>;
  using Mask = Vector<Bits>;
  using Key = Data;
  using Floats = Data;
  using PartMask = Mask;
  static constexpr int kSize = kVectorBytes / sizeof(T);
  static constexpr int kParts = 1;

  static Data minus_infinity() { return Data{} - std::numeric_limits<T>::infinity(); }
  static Key lowest() { return minus_infinity(); }
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
  static Floats part(Data data, int) { return data; }
  static PartMask part_mask(Mask mask, int) { return mask; }
  static Data join(const Floats (&parts)[1]) { return parts[0]; }
};

// 16-bit floats are compared as integers: no conversion to float, and twice as many lanes per
// vector. Sums are in float, separately for the lower and the upper lane of every 32-bit word.
template <int16_t kInfinityBits>
struct HalfLanes {
  using Data = Vector<int16_t>;
  using Mask = Vector<int16_t>;
  using Key = Vector<int16_t>;
  using Unsigned = Vector<uint16_t>;
  using Words = Vector<uint32_t>;
  using Floats = Vector<float>;
  using PartMask = Vector<int32_t>;
  static constexpr int kSize = kVectorBytes / 2;
  static constexpr int kParts = 2;
  static constexpr uint16_t kSignedNans = 0x7fff - kInfinityBits;

  static Data minus_infinity() {
    return Data{} + static_cast<int16_t>(kInfinityBits - 0x8000);
  }
  static Key lowest() { return Key{} + std::numeric_limits<int16_t>::min(); }
  // With the magnitude bits of negative numbers flipped, integers are in the order of the floats.
  // Only NaNs with a sign are at the lower end; subtracting their count wraps them to the top.
  static Key rank(Data data) {
    const Data ordered = data ^ ((data >> 15) & 0x7fff);
    return bits_as<Key>(bits_as<Unsigned>(ordered) - kSignedNans);
  }
  static Data value(Key rank) {
    const auto ordered = bits_as<Data>(bits_as<Unsigned>(rank) + kSignedNans);
    return ordered ^ ((ordered >> 15) & 0x7fff);
  }
  // The magnitude with the sign applied, so that -0 and 0 are equal. Then NaNs with a sign wrap as
  // in rank(), by one step more because one zero is gone. All NaNs are clamped to the smallest one.
  static Key key(Data data) {
    const auto sign = bits_as<Unsigned>(data >> 15);
    const Unsigned ordered = (bits_as<Unsigned>(data & 0x7fff) ^ sign) - sign;
    const auto wrapped = bits_as<Key>(ordered - static_cast<uint16_t>(kSignedNans + 1));
    const Key nan = Key{} + static_cast<int16_t>(kInfinityBits - kSignedNans);
    return wrapped < nan ? wrapped : nan;
  }
  static Mask reaches(Key candidate, Key best) { return candidate >= best; }
  static Key maximum(Key candidate, Key best) { return candidate > best ? candidate : best; }
  static PartMask part_mask(Mask mask, int part) {
    return (bits_as<PartMask>(mask) & (part == 0 ? 0x0000ffff : int32_t(0xffff0000))) != 0;
  }
};

struct BFloat16Lanes : HalfLanes<0x7f80> {
  // bfloat16 is the upper half of float.
  static Floats part(Data data, int part) {
    const auto words = bits_as<Words>(data);
    return bits_as<Floats>(part == 0 ? words << 16 : words & 0xffff0000);
  }
  static Data join(const Floats (&parts)[2]) {
    return bits_as<Data>((round(parts[0]) >> 16) | (round(parts[1]) & 0xffff0000));
  }

 private:
  // Rounds to the nearest bfloat16, ties to even, in the upper half. A NaN sum has the payload of a
  // bfloat16 or the default one. Its lower bits are 0, so that rounding cannot overflow it.
  static Words round(Floats value) {
    const auto bits = bits_as<Words>(value);
    return bits + (((bits >> 16) & 1) + 0x7fff);
  }
};

struct Float16Lanes : HalfLanes<0x7c00> {
  typedef uint16_t Halves __attribute__((vector_size(CENTRIPETALNET_VECTOR_BYTES / 2)));

  static Floats part(Data data, int part) {
    const auto halves = __builtin_convertvector(bits_as<Words>(data) >> (16 * part), Halves);
#if CENTRIPETALNET_VECTOR_BYTES == 64
    return bits_as<Floats>(_mm512_maskz_cvtph_ps(-1, bits_as<__m256i>(halves)));
#elif CENTRIPETALNET_VECTOR_BYTES == 32
    return bits_as<Floats>(_mm256_cvtph_ps(bits_as<__m128i>(halves)));
#else
    Floats floats;
    for (int lane = 0; lane < kSize / 2; ++lane) {
      floats[lane] = c10::Half(halves[lane], c10::Half::from_bits());
    }
    return floats;
#endif
  }
  static Data join(const Floats (&parts)[2]) {
    return bits_as<Data>(round(parts[0]) | (round(parts[1]) << 16));
  }

 private:
  static Words round(Floats value) {
    Halves halves;
#if CENTRIPETALNET_VECTOR_BYTES == 64
    halves = bits_as<Halves>(
        _mm512_maskz_cvtps_ph(-1, bits_as<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#elif CENTRIPETALNET_VECTOR_BYTES == 32
    halves = bits_as<Halves>(_mm256_cvtps_ph(bits_as<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#else
    for (int lane = 0; lane < kSize / 2; ++lane) {
      halves[lane] = c10::Half(value[lane]).x;
    }
#endif
    return __builtin_convertvector(halves, Words);
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
  using Type = Float16Lanes;
};
template <typename T>
using Lanes = typename LanesOf<T>::Type;

// `data` where `mask` is set, zero elsewhere.
template <typename L>
inline typename L::Data only(typename L::Data data, typename L::Mask mask) {
  return bits_as<typename L::Data>(bits_as<typename L::Mask>(data) & mask);
}

// Sums of gradients, one for each lane.
template <typename T>
struct Sums {
  using L = Lanes<T>;
  typename L::Floats parts[L::kParts];

  void add(typename L::Data grad) {
    for (int part = 0; part < L::kParts; ++part) {
      parts[part] += L::part(grad, part);
    }
  }

  void add_where(typename L::Mask mask, const Sums& other) {
    for (int part = 0; part < L::kParts; ++part) {
      const auto bits = bits_as<typename L::PartMask>(other.parts[part]);
      parts[part] += bits_as<typename L::Floats>(bits & L::part_mask(mask, part));
    }
  }

  // Adds `grad`. Where `starts` is set, returns the sum and resets it to zero; elsewhere returns 0.
  typename L::Data collect(typename L::Data grad, typename L::Mask starts) {
    add(grad);
    const auto total = L::join(parts);
    for (int part = 0; part < L::kParts; ++part) {
      const auto bits = bits_as<typename L::PartMask>(parts[part]);
      parts[part] = bits_as<typename L::Floats>(bits & ~L::part_mask(starts, part));
    }
    return only<L>(total, starts);
  }
};

#if CENTRIPETALNET_VECTOR_BYTES == 64
inline __mmask64 first_bytes(int64_t count) { return (uint64_t{1} << count) - 1; }
#endif

// Loads min(count, vector size) elements; the other lanes are `fill`.
template <typename T>
inline typename Lanes<T>::Data load(
    const T* from, int64_t count, typename Lanes<T>::Data fill = typename Lanes<T>::Data{}) {
  typename Lanes<T>::Data data;
  if (count >= Lanes<T>::kSize) {
    std::memcpy(&data, from, sizeof(data));
    return data;
  }
#if CENTRIPETALNET_VECTOR_BYTES == 64
  return bits_as<typename Lanes<T>::Data>(
      _mm512_mask_loadu_epi8(bits_as<__m512i>(fill), first_bytes(count * sizeof(T)), from));
#else
  data = fill;
  std::memcpy(&data, from, count * sizeof(T));
  return data;
#endif
}

template <typename T>
inline void store(typename Lanes<T>::Data data, T* to, int64_t count) {
  if (count >= Lanes<T>::kSize) {
    std::memcpy(to, &data, sizeof(data));
    return;
  }
#if CENTRIPETALNET_VECTOR_BYTES == 64
  _mm512_mask_storeu_epi8(to, first_bytes(count * sizeof(T)), bits_as<__m512i>(data));
#else
  std::memcpy(to, &data, count * sizeof(T));
#endif
}

// Assumes cache lines of 64 bytes; others are only slower. Addresses are integers because they may
// be outside the tensor.
template <typename T>
inline void prefetch(const T* base, int64_t first, int64_t count) {
  const auto address = reinterpret_cast<uintptr_t>(base) + first * sizeof(T);
  for (uintptr_t offset = 0; offset < count * sizeof(T); offset += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + offset));
  }
}

// ---- Rows of adjacent lanes

// Rows processed per load and store of a lane's state. Few enough streams for hardware prefetchers,
// and for the ways of the L1 cache, as rows at power-of-two distances share a set.
constexpr int kRowsAtOnce = 4;

// Prefetch distance in elements, tuned to memory latency: across rows if rows are short, along the
// row if it is long.
template <typename T>
inline int64_t prefetch_distance(int64_t lanes, int64_t step) {
  constexpr int64_t kAcross = 6144 / sizeof(T);
  constexpr int64_t kAlong = 1536 / sizeof(T);
  return lanes < kAcross ? kAcross / lanes * step : kAlong;
}

// A slot is the state of one vector of lanes.
template <typename T>
constexpr int64_t slots_of(int64_t lanes) {
  return (lanes + Lanes<T>::kSize - 1) / Lanes<T>::kSize;
}

// Advances all slots by kRows rows, starting at `row`. If the number of lanes is not a multiple of
// the vector size, the last vector overlaps the one before. It has its own slot, so lanes in the
// overlap are computed twice, with the same result.
template <typename T, int kRows, typename Kernel>
inline void advance_slots(Kernel& kernel, int64_t row, int64_t lanes) {
  constexpr int64_t kSize = Lanes<T>::kSize;
  const int64_t whole = lanes / kSize;
  for (int64_t slot = 0; slot < whole; ++slot) {
    kernel.template advance<kRows>(slot, row, slot * kSize, kSize);
  }
  if (whole * kSize < lanes) {
    kernel.template advance<kRows>(
        whole, row, std::max<int64_t>(lanes - kSize, 0), std::min(lanes, kSize));
  }
}

template <typename T, typename Kernel>
inline void walk_rows(Kernel kernel, int64_t length, int64_t lanes) {
  int64_t row = 0;
  for (; row + kRowsAtOnce <= length; row += kRowsAtOnce) {
    advance_slots<T, kRowsAtOnce>(kernel, row, lanes);
  }
  for (; row < length; ++row) {
    advance_slots<T, 1>(kernel, row, lanes);
  }
}

template <typename T, typename Kernel>
inline void walk_rows_backwards(Kernel kernel, int64_t length, int64_t lanes) {
  int64_t row = length;
  while (row % kRowsAtOnce != 0) {
    advance_slots<T, 1>(kernel, --row, lanes);
  }
  while (row > 0) {
    row -= kRowsAtOnce;
    advance_slots<T, kRowsAtOnce>(kernel, row, lanes);
  }
}

template <typename T>
struct PoolRows {
  using L = Lanes<T>;
  const T* input;
  T* output;
  typename L::Key* best;
  int64_t step, ahead;

  template <int kRows>
  void advance(int64_t slot, int64_t row, int64_t lane, int64_t count) {
    auto top = best[slot];
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = (row + i) * step + lane;
      prefetch(input, at + ahead, L::kSize);
      prefetch(output, at + ahead, L::kSize);
      top = L::maximum(L::rank(load(input + at, count)), top);
      store(L::value(top), output + at, count);
    }
    best[slot] = top;
  }
};

// Shifts the bits of every lane left by one; the lowest bit is 1 where `mask` is set. Unsigned, as
// the topmost bit overflows.
template <typename Mask>
inline Mask with_next_bit(Mask bits, Mask mask) {
  using Element = std::remove_reference_t<decltype(bits[0])>;
  using Unsigned = Vector<std::make_unsigned_t<Element>>;
  const auto word = bits_as<Unsigned>(bits);
  return bits_as<Mask>(word + word - bits_as<Unsigned>(mask));
}

// Marks the elements that become the maximum, one bit per row.
template <typename T>
struct MarkRows {
  using L = Lanes<T>;
  static constexpr int kBits = 8 * sizeof(T);
  static_assert(kBits % kRowsAtOnce == 0, "rows processed together have their marks in one vector");
  const T* input;
  typename L::Mask* marks;
  typename L::Key* best;
  int64_t slots, step, ahead;

  template <int kRows>
  void advance(int64_t slot, int64_t row, int64_t lane, int64_t count) {
    auto top = best[slot];
    auto bits = row % kBits == 0 ? typename L::Mask{} : marks[row / kBits * slots + slot];
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = (row + i) * step + lane;
      prefetch(input, at + ahead, L::kSize);
      const auto candidate = L::key(load(input + at, count));
      bits = with_next_bit(bits, L::reaches(candidate, top));
      top = L::maximum(candidate, top);
    }
    best[slot] = top;
    marks[row / kBits * slots + slot] = bits;
  }
};

// Goes backwards over the rows; sums gradients from mark to mark.
template <typename T>
struct CollectRows {
  using L = Lanes<T>;
  static constexpr int kBits = MarkRows<T>::kBits;
  const T* grad_output;
  T* grad_input;
  typename L::Mask* marks;
  Sums<T>* sums;
  int64_t slots, step, ahead;

  template <int kRows>
  void advance(int64_t slot, int64_t row, int64_t lane, int64_t count) {
    auto sum = sums[slot];
    auto bits = marks[row / kBits * slots + slot];
    for (int i = kRows - 1; i >= 0; --i) {
      const int64_t at = (row + i) * step + lane;
      prefetch(grad_output, at + ahead, L::kSize);
      prefetch(grad_input, at + ahead, L::kSize);
      store(sum.collect(load(grad_output + at, count), -(bits & 1)), grad_input + at, count);
      bits = bits >> 1;
    }
    sums[slot] = sum;
    marks[row / kBits * slots + slot] = bits;
  }
};

// Pools `length` rows of `lanes` adjacent elements. `step` is the distance in elements to the next
// row of the scan; it is negative for a reverse scan.
template <typename T>
[[gnu::flatten]] void pool_rows(
    const T* input, T* output, Scratch& scratch, int64_t length, int64_t lanes, int64_t step) {
  using L = Lanes<T>;
  const int64_t slots = slots_of<T>(lanes);
  auto* best = scratch.state.template array<typename L::Key>(slots);
  std::fill_n(best, slots, L::lowest());
  walk_rows<T>(
      PoolRows<T>{input, output, best, step, prefetch_distance<T>(lanes, step)}, length, lanes);
}

// Gradient of pool_rows. An element that became the maximum gets the sum of the output gradients
// from its row to the row before the next such element. The first pass marks these elements; the
// second, backwards, sums.
template <typename T>
[[gnu::flatten]] void unpool_rows(
    const T* grad_output, const T* input, T* grad_input, Scratch& scratch, int64_t length,
    int64_t lanes, int64_t step) {
  using L = Lanes<T>;
  const int64_t slots = slots_of<T>(lanes);
  const int64_t mark_rows = (length + MarkRows<T>::kBits - 1) / MarkRows<T>::kBits;
  auto* marks = scratch.marks.template array<typename L::Mask>(mark_rows * slots);
  auto* best = scratch.state.template array<typename L::Key>(slots);
  std::fill_n(best, slots, L::lowest());
  walk_rows<T>(
      MarkRows<T>{input, marks, best, slots, step, prefetch_distance<T>(lanes, step)}, length,
      lanes);
  auto* sums = scratch.state.template array<Sums<T>>(slots);
  std::fill_n(sums, slots, Sums<T>{});
  walk_rows_backwards<T>(
      CollectRows<T>{
          grad_output, grad_input, marks, sums, slots, step, prefetch_distance<T>(lanes, -step)},
      length, lanes);
}

// ---- Contiguous scan lines

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
inline typename L::Key maxima_before(typename L::Key maxima, typename L::Key before) {
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
    const Sums<T>& sums, typename Lanes<T>::Mask passes, const Sums<T>& before) {
  constexpr typename Lanes<T>::Mask kNone{};
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
    typename L::Key tops[kLines];
    auto top = L::lowest();
    for (int j = 0; j < kLines; ++j) {
      const int64_t k = in_order<kReverse>(j, kLines);
      top = L::maximum(L::rank(data[k]), top);
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
  using Mask = typename L::Mask;
  constexpr int kLines = Lines<T>::kLines;
  auto* marks = scratch.marks.template array<Mask>(lines.tiles * kLines);
  auto best = L::lowest();
  for (int64_t i = 0; i < lines.tiles; ++i) {
    const int64_t tile = in_order<kReverse>(i, lines.tiles);
    lines.prefetch_tile(grad_output, i, lines.ahead - 1);
    lines.prefetch_tile(grad_input, i, lines.ahead - 1);
    typename L::Data data[kLines];
    lines.load_tile(input, tile, L::minus_infinity(), data);
    typename L::Key tops[kLines];
    auto top = L::lowest();
    for (int j = 0; j < kLines; ++j) {
      const int64_t k = in_order<kReverse>(j, kLines);
      data[k] = bits_as<typename L::Data>(L::key(data[k]));
      top = L::maximum(bits_as<typename L::Key>(data[k]), top);
      tops[k] = top;
    }
    const auto before = maxima_before<L, kReverse>(top, best);
    best = L::maximum(top, before);
    // An element became the maximum if the maximum up to it equals the element.
    for (int k = 0; k < kLines; ++k) {
      marks[tile * kLines + k] =
          bits_as<Mask>(L::maximum(tops[k], before)) == bits_as<Mask>(data[k]);
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
        open.add(only<L>(data[k], passes));
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

// Corner pooling of rows of adjacent lanes, see corner_pool_cpu.h.
namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling {

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
  typename L::Data* best;
  int64_t step, ahead;

  template <int kRows>
  void advance(int64_t slot, int64_t row, int64_t lane, int64_t count) {
    auto top = best[slot];
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = (row + i) * step + lane;
      prefetch(input, at + ahead, L::kSize);
      prefetch(output, at + ahead, L::kSize);
      top = L::maximum(L::key(load(input + at, count)), top);
      store(L::value(top), output + at, count);
    }
    best[slot] = top;
  }
};

// Shifts the bits of every lane left by one; the lowest bit is 1 where `mask` is set. Unsigned, as
// the topmost bit overflows.
template <typename Data>
inline Data with_next_bit(Data bits, Data mask) {
  using Element = std::remove_reference_t<decltype(bits[0])>;
  using Unsigned = Vector<std::make_unsigned_t<Element>>;
  const auto word = bits_as<Unsigned>(bits);
  return bits_as<Data>(word + word - bits_as<Unsigned>(mask));
}

// Marks the elements that become the maximum, one bit per row.
template <typename T>
struct MarkRows {
  using L = Lanes<T>;
  static constexpr int kBits = 8 * sizeof(T);
  static_assert(kBits % kRowsAtOnce == 0, "rows processed together have their marks in one vector");
  const T* input;
  typename L::Data* marks;
  typename L::Data* best;
  int64_t slots, step, ahead;

  template <int kRows>
  void advance(int64_t slot, int64_t row, int64_t lane, int64_t count) {
    auto top = best[slot];
    auto bits = row % kBits == 0 ? typename L::Data{} : marks[row / kBits * slots + slot];
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = (row + i) * step + lane;
      prefetch(input, at + ahead, L::kSize);
      const auto candidate = L::key(load(input + at, count));
      bits = with_next_bit(bits, candidate >= top);
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
  typename L::Data* marks;
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
  auto* best = scratch.state.template array<typename L::Data>(slots);
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
  auto* marks = scratch.marks.template array<typename L::Data>(mark_rows * slots);
  auto* best = scratch.state.template array<typename L::Data>(slots);
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

}  // namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling

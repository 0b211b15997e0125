// Vectors of corner pooling's CPU kernels, see corner_pool_cpu.h: comparisons, sums, loads and stores.
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

// Lanes<T> defines how the lanes of one vector are compared and summed. Data are the bits of floats. A
// key is an integer in the order of cummax: NaN is larger than any number, and -0 equals 0. A mask has
// all bits of a lane set for true. Gradients are summed in kParts vectors of `Floats`: part() converts
// one of them from Data, join() all of them to Data.
template <typename Bits, Bits kInfinity>
struct OrderedLanes {
  using Data = Vector<Bits>;
  static constexpr int kSize = kVectorBytes / sizeof(Bits);

  static Data minus_infinity() { return Data{} + (kInfinity | std::numeric_limits<Bits>::min()); }
  static Data lowest() { return Data{} + std::numeric_limits<Bits>::min(); }
  // The bits of a float are a sign and a magnitude; an integer with that sign has the float's order.
  static Data key(Data data) {
    const Data magnitude = data & std::numeric_limits<Bits>::max();
    const Data sign = data >> (8 * sizeof(Bits) - 1);
    const Data nan = Data{} + std::numeric_limits<Bits>::max();
    return magnitude > kInfinity ? nan : (magnitude ^ sign) - sign;
  }
  static Data value(Data key) {
    const Data sign = key >> (8 * sizeof(Bits) - 1);
    return ((key ^ sign) - sign) | (sign & std::numeric_limits<Bits>::min());
  }
  static Data maximum(Data a, Data b) { return a > b ? a : b; }
};

template <typename T, typename Bits, Bits kInfinity>
struct FloatLanes : OrderedLanes<Bits, kInfinity> {
  using Data = Vector<Bits>;
  using Floats = Vector<T>;
  using PartMask = Data;
  static constexpr int kParts = 1;

  static Floats part(Data data, int) { return bits_as<Floats>(data); }
  static PartMask part_mask(Data mask, int) { return mask; }
  static Data join(const Floats (&parts)[1]) { return bits_as<Data>(parts[0]); }
};

// Sums are in float, separately for the lower and the upper lane of every 32-bit word.
struct BFloat16Lanes : OrderedLanes<int16_t, 0x7f80> {
  using Words = Vector<uint32_t>;
  using Floats = Vector<float>;
  using PartMask = Vector<int32_t>;
  static constexpr int kParts = 2;

  // bfloat16 is the upper half of float.
  static Floats part(Data data, int part) {
    const auto words = bits_as<Words>(data);
    return bits_as<Floats>(part == 0 ? words << 16 : words & 0xffff0000);
  }
  static PartMask part_mask(Data mask, int part) {
    return (bits_as<PartMask>(mask) & (part == 0 ? 0x0000ffff : int32_t(0xffff0000))) != 0;
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

template <typename T>
struct LanesOf {
  using Type = BFloat16Lanes;
};
template <>
struct LanesOf<float> {
  using Type = FloatLanes<float, int32_t, 0x7f800000>;
};
template <>
struct LanesOf<double> {
  using Type = FloatLanes<double, int64_t, 0x7ff0000000000000>;
};
template <typename T>
using Lanes = typename LanesOf<T>::Type;

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

  void add_where(typename L::Data mask, const Sums& other) {
    for (int part = 0; part < L::kParts; ++part) {
      const auto bits = bits_as<typename L::PartMask>(other.parts[part]);
      parts[part] += bits_as<typename L::Floats>(bits & L::part_mask(mask, part));
    }
  }

  // Adds `grad`. Where `starts` is set, returns the sum and resets it to zero; elsewhere returns 0.
  typename L::Data collect(typename L::Data grad, typename L::Data starts) {
    add(grad);
    const auto total = L::join(parts);
    for (int part = 0; part < L::kParts; ++part) {
      const auto bits = bits_as<typename L::PartMask>(parts[part]);
      parts[part] = bits_as<typename L::Floats>(bits & ~L::part_mask(starts, part));
    }
    return total & starts;
  }
};

// Loads min(count, vector size) elements; the other lanes are `fill`.
template <typename T>
inline typename Lanes<T>::Data load(
    const T* from, int64_t count, typename Lanes<T>::Data fill = typename Lanes<T>::Data{}) {
  if (count >= Lanes<T>::kSize) {
    // A copy of known size is one instruction.
    std::memcpy(&fill, from, sizeof(fill));
  } else {
    std::memcpy(&fill, from, count * sizeof(T));
  }
  return fill;
}

template <typename T>
inline void store(typename Lanes<T>::Data data, T* to, int64_t count) {
  if (count >= Lanes<T>::kSize) {
    std::memcpy(to, &data, sizeof(data));
  } else {
    std::memcpy(to, &data, count * sizeof(T));
  }
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

}  // namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling

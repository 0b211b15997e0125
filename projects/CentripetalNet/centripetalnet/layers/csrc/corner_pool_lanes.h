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

}  // namespace centripetalnet::CENTRIPETALNET_CAPABILITY::corner_pooling

// Runs the CUDA kernels of corner pooling on the CPU and compares them with a plain scan.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "cuda_on_cpu.h"

#include "corner_pool_kernel.cuh"

using namespace centripetalnet;
using namespace centripetalnet::gpu;

template <typename Kernel>
void launch(const ScanLayout& layout, const Kernel& kernel) {
  cuda_on_cpu::launch({static_cast<unsigned>(block_count(layout))}, {kLines, kSegments}, kernel);
}

// Floats of 16 bits without arithmetic, as on GPUs.
struct BFloat16 {
  BFloat16() = default;
  explicit BFloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof(word));
    bits = static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof(value));
    return value;
  }
  uint16_t bits = 0;
};

template <typename T, bool kContiguous>
int wrong_elements(int64_t outer, int64_t length, int64_t inner, bool reverse) {
  using Value = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const ScanLayout layout{outer, length, inner, reverse};
  const int64_t size = outer * length * inner;
  std::mt19937 random(length);
  std::vector<T> input(size), grad_output(size), output(size), grad_input(size);
  std::vector<Value> expected_output(size), expected_grad(size);
  const auto value_of = [](T x) { return static_cast<Value>(x); };
  for (int64_t i = 0; i < size; ++i) {
    const unsigned draw = random() % 32;
    const Value value = draw == 0 ? NAN : draw == 1 ? -INFINITY : static_cast<Value>(draw % 7);
    input[i] = static_cast<T>(value);
    grad_output[i] = static_cast<T>(static_cast<Value>(random() % 17) - 8);
  }
  for (int64_t line = 0; line < outer * inner; ++line) {
    int64_t owner = -1;
    for (int64_t position = 0; position < length; ++position) {
      const int64_t along = reverse ? length - 1 - position : position;
      const int64_t at = (line / inner * length + along) * inner + line % inner;
      const Value value = value_of(input[at]);
      if (owner < 0 || std::isnan(value) || value >= value_of(input[owner])) {
        owner = at;
      }
      expected_output[at] = value_of(input[owner]);
      expected_grad[owner] += value_of(grad_output[at]);
    }
  }
  std::vector<Marks> marks(mark_count(layout));
  launch(layout, [&] {
    corner_pool_kernel<T, Value, kContiguous>(input.data(), output.data(), layout);
  });
  launch(layout, [&] {
    corner_pool_backward_kernel<T, Value, kContiguous>(
        grad_output.data(), input.data(), grad_input.data(), marks.data(), layout);
  });
  int wrong = 0;
  for (int64_t i = 0; i < size; ++i) {
    const Value pooled = value_of(output[i]), expected = expected_output[i];
    const bool same = pooled == expected || (std::isnan(pooled) && std::isnan(expected));
    // Rounded once, to the dtype.
    const Value gradient = value_of(static_cast<T>(expected_grad[i]));
    wrong += !same || value_of(grad_input[i]) != gradient;
  }
  if (wrong > 0) {
    std::printf(
        "outer %d length %d inner %d reverse %d: %d wrong\n", static_cast<int>(outer),
        static_cast<int>(length), static_cast<int>(inner), reverse, wrong);
  }
  return wrong;
}

// A part of a tile, one tile, three tiles; lines that fill a thread block or do not.
template <typename T>
int wrong_in_all_layouts(bool reverse) {
  return wrong_elements<T, true>(5, 17, 1, reverse) + wrong_elements<T, true>(64, 128, 1, reverse) +
         wrong_elements<T, true>(33, 300, 1, reverse) + wrong_elements<T, false>(7, 1, 3, reverse) +
         wrong_elements<T, false>(2, 128, 32, reverse) +
         wrong_elements<T, false>(1, 300, 35, reverse);
}

// Every GPU takes 2^31 - 1 blocks and 1,024 threads per block. Each line has one thread per segment.
bool grids_are_within_limits() {
  static_assert(kThreads <= 1024, "too many threads per block");
  bool right = true;
  for (const ScanLayout& layout : {
           ScanLayout{1, 1, 1, false}, ScanLayout{2 * 128, 128, 128, false},
           ScanLayout{2 * 128 * 128, 128, 1, true}, ScanLayout{int64_t{1} << 35, 4, 1, false}}) {
    const int64_t lines = layout.outer * layout.inner, blocks = block_count(layout);
    right = right && blocks <= INT32_MAX && blocks * kLines >= lines &&
        (blocks - 1) * kLines < lines && tile_count(layout) * kTileLength >= layout.length &&
        mark_count(layout) * kRows >= lines * layout.length;
  }
  return right;
}

// With an argument: only what finds a missing barrier.
int main(int count, char**) {
  if (count > 1) {
    return wrong_elements<float, true>(33, 300, 1, false) +
               wrong_elements<float, false>(1, 300, 35, false) > 0;
  }
  int wrong = wrong_in_all_layouts<float>(false) + wrong_in_all_layouts<float>(true);
  wrong += wrong_in_all_layouts<BFloat16>(false) + wrong_in_all_layouts<_Float16>(true);
  wrong += wrong_in_all_layouts<double>(false);
  return wrong > 0 || !grids_are_within_limits();
}

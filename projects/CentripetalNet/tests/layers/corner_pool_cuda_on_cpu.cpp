// Runs the CUDA kernels of corner pooling on the CPU and compares them with a plain scan.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"

#include "corner_pool_kernel.cuh"

using namespace centripetalnet;
using namespace centripetalnet::gpu;

template <typename Kernel>
void launch(const ScanLayout& layout, const Kernel& kernel) {
  cuda_on_cpu::launch({static_cast<unsigned>(block_count(layout))}, {kLines, kSegments}, kernel);
}

template <bool kContiguous>
int wrong_elements(int64_t outer, int64_t length, int64_t inner, bool reverse) {
  const ScanLayout layout{outer, length, inner, reverse};
  const int64_t size = outer * length * inner;
  std::mt19937 random(length);
  std::vector<float> input(size), grad_output(size), output(size), grad_input(size);
  std::vector<float> expected_output(size), expected_grad(size);
  for (int64_t i = 0; i < size; ++i) {
    const unsigned draw = random() % 32;
    input[i] = draw == 0 ? NAN : draw == 1 ? -INFINITY : static_cast<float>(draw % 7);
    grad_output[i] = static_cast<float>(random() % 17) - 8;
  }
  for (int64_t line = 0; line < outer * inner; ++line) {
    int64_t owner = -1;
    for (int64_t position = 0; position < length; ++position) {
      const int64_t along = reverse ? length - 1 - position : position;
      const int64_t at = (line / inner * length + along) * inner + line % inner;
      if (owner < 0 || std::isnan(input[at]) || input[at] >= input[owner]) {
        owner = at;
      }
      expected_output[at] = input[owner];
      expected_grad[owner] += grad_output[at];
    }
  }
  std::vector<Marks> marks(mark_count(layout));
  launch(layout, [&] {
    corner_pool_kernel<float, float, kContiguous>(input.data(), output.data(), layout);
  });
  launch(layout, [&] {
    corner_pool_backward_kernel<float, float, kContiguous>(
        grad_output.data(), input.data(), grad_input.data(), marks.data(), layout);
  });
  int wrong = 0;
  for (int64_t i = 0; i < size; ++i) {
    const bool same = output[i] == expected_output[i] ||
        (std::isnan(output[i]) && std::isnan(expected_output[i]));
    wrong += !same || grad_input[i] != expected_grad[i];
  }
  if (wrong > 0) {
    std::printf(
        "outer %d length %d inner %d reverse %d: %d wrong\n", static_cast<int>(outer),
        static_cast<int>(length), static_cast<int>(inner), reverse, wrong);
  }
  return wrong;
}

int main() {
  int wrong = 0;
  for (const bool reverse : {false, true}) {
    // A part of a tile, one tile, three tiles; lines that fill a thread block or do not.
    wrong += wrong_elements<true>(5, 17, 1, reverse);
    wrong += wrong_elements<true>(64, 128, 1, reverse);
    wrong += wrong_elements<true>(33, 300, 1, reverse);
    wrong += wrong_elements<false>(7, 1, 3, reverse);
    wrong += wrong_elements<false>(2, 128, 32, reverse);
    wrong += wrong_elements<false>(1, 300, 35, reverse);
  }
  return wrong > 0;
}

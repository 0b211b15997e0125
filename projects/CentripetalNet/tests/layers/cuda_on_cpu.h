// Emulates the CUDA features of the kernels on the CPU, with one CPU thread per thread of a block.
// ThreadSanitizer finds a missing barrier even if the results happen to be right.
#pragma once

#include <barrier>
#include <thread>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
static thread_local dim3 threadIdx, blockIdx;
static dim3 gridDim;
static std::barrier<>* block_barrier = nullptr;

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
// Blocks run one after the other, so they can share one copy.
#define __shared__ static
inline void __syncthreads() { block_barrier->arrive_and_wait(); }

namespace cuda_on_cpu {

template <typename Kernel>
void launch(dim3 grid, dim3 block, const Kernel& kernel) {
  const unsigned count = block.x * block.y;
  std::barrier<> barrier(count);
  block_barrier = &barrier;
  gridDim = grid;
  std::vector<std::thread> threads;
  for (unsigned thread = 0; thread < count; ++thread) {
    threads.emplace_back([&, thread] {
      threadIdx = {thread % block.x, thread / block.x, 0};
      for (unsigned index = 0; index < grid.x * grid.y; ++index) {
        blockIdx = {index % grid.x, index / grid.x, 0};
        kernel();
        __syncthreads();
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
}

}  // namespace cuda_on_cpu

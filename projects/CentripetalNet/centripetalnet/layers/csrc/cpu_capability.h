// Selects the instruction set of CPU kernels at run time.
//
// A kernel is written once, as loops that the compiler vectorises or with vectors of
// CENTRIPETALNET_VECTOR_BYTES, in a header without an include guard and without includes, in
// namespace centripetalnet::CENTRIPETALNET_CAPABILITY. `foreach_cpu_capability.h` includes it once
// for each instruction set:
//
//     #define CENTRIPETALNET_KERNELS "my_kernels.h"
//     #include "foreach_cpu_capability.h"
//
//     // in namespace centripetalnet: calls the kernel for the best instruction set of this machine
//     CENTRIPETALNET_DISPATCH(my_kernel, arguments...);
//
// The environment variable CENTRIPETALNET_CPU_CAPABILITY (baseline, avx2 or avx512) is an upper
// limit, for tests and benchmarks.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CENTRIPETALNET_HAS_X86_CAPABILITIES
#endif

namespace centripetalnet {

enum CpuCapability { kBaseline, kAvx2, kAvx512 };

inline CpuCapability machine_capability() {
#ifdef CENTRIPETALNET_HAS_X86_CAPABILITIES
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has_avx2 ? (has_avx512 ? kAvx512 : kAvx2) : kBaseline;
#else
  return kBaseline;
#endif
}

inline CpuCapability wanted_capability() {
  const char* variable = std::getenv("CENTRIPETALNET_CPU_CAPABILITY");
  const std::string name = variable == nullptr ? "avx512" : variable;
  TORCH_CHECK_VALUE(
      name == "baseline" || name == "avx2" || name == "avx512",
      "CENTRIPETALNET_CPU_CAPABILITY must be baseline, avx2 or avx512, got '", name, "'");
  return name == "baseline" ? kBaseline : name == "avx2" ? kAvx2 : kAvx512;
}

inline CpuCapability cpu_capability() {
  static const CpuCapability capability = std::min(machine_capability(), wanted_capability());
  return capability;
}

#ifndef CENTRIPETALNET_HAS_X86_CAPABILITIES
namespace baseline {}
namespace avx2 = baseline;
namespace avx512 = baseline;
#endif

}  // namespace centripetalnet

#define CENTRIPETALNET_DISPATCH(function, ...)                 \
  (cpu_capability() == kAvx512 ? avx512::function(__VA_ARGS__) \
   : cpu_capability() == kAvx2 ? avx2::function(__VA_ARGS__)   \
                               : baseline::function(__VA_ARGS__))

// Includes CENTRIPETALNET_KERNELS once for each instruction set, see cpu_capability.h.
//
// Include all headers that the kernels need before this one. Otherwise their inline functions are
// compiled for an instruction set that the machine may lack, and the linker may use these copies.
#include "cpu_capability.h"

#define CENTRIPETALNET_CAPABILITY baseline
#define CENTRIPETALNET_VECTOR_BYTES 16
#include CENTRIPETALNET_KERNELS
#undef CENTRIPETALNET_CAPABILITY
#undef CENTRIPETALNET_VECTOR_BYTES

#ifdef CENTRIPETALNET_HAS_X86_CAPABILITIES

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define CENTRIPETALNET_CAPABILITY avx2
#define CENTRIPETALNET_VECTOR_BYTES 32
#include CENTRIPETALNET_KERNELS
#undef CENTRIPETALNET_CAPABILITY
#undef CENTRIPETALNET_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define CENTRIPETALNET_CAPABILITY avx512
#define CENTRIPETALNET_VECTOR_BYTES 64
#include CENTRIPETALNET_KERNELS
#undef CENTRIPETALNET_CAPABILITY
#undef CENTRIPETALNET_VECTOR_BYTES
#pragma GCC pop_options

#endif

#undef CENTRIPETALNET_KERNELS

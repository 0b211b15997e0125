// CPU kernels of corner pooling for one instruction set. corner_pool_cpu.cpp includes this file
// once for each, after the headers that the kernels need, see cpu_capability.h.
//
// A lane is one scan line. Kernels process one vector of lanes at a time, with the vector types of
// GCC and Clang. Rows of adjacent lanes are loaded directly (pool_rows). Contiguous scan lines are
// loaded as tiles of lines x columns and transposed in registers (pool_lines). Functions on single
// vectors must be inlined, as passing a vector through memory costs more than the arithmetic;
// therefore the kernels have gnu::flatten.
#include "corner_pool_lanes.h"
#include "corner_pool_rows.h"
#include "corner_pool_lines.h"

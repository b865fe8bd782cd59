// FSS_HD marks a function that compiles for the host and, under nvcc, for the device too.
#pragma once

#ifdef __CUDACC__
#define FSS_HD __host__ __device__ inline
#else
#define FSS_HD inline
#endif

// What all measurements of rates.cu share: a report, a check of what CUDA says, and the device.
#pragma once
#include <cuda_runtime.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}
#define CHECK(call) check(call, #call)

void report(const char* name, double value) {
  std::printf("{\"%s\": %.6g}\n", name, value);
  std::fflush(stdout);
}

constexpr int kThreads = 256;
constexpr int kLineBytes = 128;

__device__ void multiply_add(float (&s)[4], const uint4& a, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%8}, {%0,%1,%2,%3};"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b));
}

struct Device {
  int multiprocessors, shared_bytes;
  uint4* sums;
  long long* cycles;
};

double mean_cycles(const Device& device, int blocks) {
  std::vector<long long> cycles(blocks);
  CHECK(cudaMemcpy(cycles.data(), device.cycles, blocks * sizeof(long long), cudaMemcpyDefault));
  double sum = 0;
  for (long long c : cycles) sum += static_cast<double>(c);
  return sum / blocks;
}

}  // namespace

// How fast memory is read: L2 by one multiprocessor and by all, latencies, and DRAM.
#pragma once
#include "rates_device.h"

namespace {

// -- memory that is streamed: each thread has Depth copies of 16 bytes on their way to shared memory, or that many
// loads to registers, of which the compiler begins several at a time

__device__ uint4 streamed(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__device__ void add(uint4& sum, const uint4& v) { sum.x ^= v.x, sum.y ^= v.y, sum.z ^= v.z, sum.w ^= v.w; }

// Every block reads `count` rows of kThreads vectors, from its own place on, over and over through data[mask + 1]. Each
// vector is multiplied, as the sampler's weights are.
template <int Depth>
__global__ void __launch_bounds__(kThreads, 1)
    stream_registers(const uint4* data, uint32_t mask, uint32_t apart, int count, uint4* sums, long long* cycles) {
  uint32_t next = blockIdx.x * apart + threadIdx.x;
  uint4 ring[Depth];
  float sum[4] = {};
  __syncthreads();
  const long long start = clock64();
#pragma unroll
  for (int d = 0; d < Depth; d++, next += kThreads) ring[d] = streamed(data + (next & mask));
#pragma unroll 1
  for (int i = Depth; i < count; i += Depth) {
#pragma unroll
    for (int d = 0; d < Depth; d++, next += kThreads) {
      multiply_add(sum, ring[d], 0x3f80'3f80);
      ring[d] = streamed(data + (next & mask));
    }
  }
#pragma unroll
  for (int d = 0; d < Depth; d++) multiply_add(sum, ring[d], 0x3f80'3f80);
  reinterpret_cast<float*>(sums)[blockIdx.x * kThreads + threadIdx.x] = sum[0] + sum[1] + sum[2] + sum[3];
  __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
}

// The same through shared memory, by cp.async.
template <int Depth>
__global__ void __launch_bounds__(kThreads, 1)
    stream_shared(const uint4* data, uint32_t mask, uint32_t apart, int count, uint4* sums, long long* cycles) {
  extern __shared__ uint4 rings[];
  uint32_t next = blockIdx.x * apart + threadIdx.x;
  uint4* const ring = rings + threadIdx.x;
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(ring));
  auto copy = [&](int d) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n cp.async.commit_group;" ::"r"(
                     address + d * kThreads * static_cast<uint32_t>(sizeof(uint4))),
                 "l"(data + (next & mask))
                 : "memory");
    next += kThreads;
  };
  uint4 sum = {};
  __syncthreads();
  const long long start = clock64();
#pragma unroll
  for (int d = 0; d < Depth; d++) copy(d);
#pragma unroll 1
  for (int i = Depth; i < count; i += Depth) {
#pragma unroll
    for (int d = 0; d < Depth; d++) {
      asm volatile("cp.async.wait_group %0;" ::"n"(Depth - 1) : "memory");
      add(sum, ring[d * kThreads]);
      copy(d);
    }
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
#pragma unroll
  for (int d = 0; d < Depth; d++) add(sum, ring[d * kThreads]);
  sums[blockIdx.x * kThreads + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
}

using Stream = void (*)(const uint4*, uint32_t, uint32_t, int, uint4*, long long*);

// Bytes per cycle that each of `blocks` blocks gets from L2. The buffer's size is a power of two.
double l2_rate(const Device& device, Stream kernel, int shared, int blocks, const uint4* data, uint32_t bytes,
               bool apart) {
  constexpr int kCount = 8192;  // a multiple of every Depth; 32 MB for each block
  const uint32_t vectors = bytes / sizeof(uint4);
  const uint32_t between = apart ? vectors / blocks / kThreads * kThreads : 0;
  CHECK(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  for (int run = 0; run < 2; run++) {  // the first brings the buffer into L2
    kernel<<<blocks, kThreads, shared>>>(data, vectors - 1, between, kCount, device.sums, device.cycles);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
  }
  return double{kCount} * kThreads * sizeof(uint4) / mean_cycles(device, blocks);
}

void measure_l2_rates(const Device& device) {
  constexpr uint32_t kBytes = 4 << 20;  // about the weights of the default network
  uint4* data;
  CHECK(cudaMalloc(&data, kBytes));
  CHECK(cudaMemset(data, 1, kBytes));
  constexpr int kSlot = kThreads * sizeof(uint4);  // 4 KB for each load of a thread
  const int all = device.multiprocessors;
  auto rate = [&](Stream kernel, int shared, int blocks, bool apart, const char* name) {
    if (shared <= device.shared_bytes) report(name, l2_rate(device, kernel, shared, blocks, data, kBytes, apart));
  };
  rate(stream_shared<8>, 8 * kSlot, 1, false, "L2 to one multiprocessor, 32 KB in flight, bytes a cycle");
  rate(stream_shared<16>, 16 * kSlot, 1, false, "L2 to one multiprocessor, 64 KB in flight, bytes a cycle");
  rate(stream_shared<32>, 32 * kSlot, 1, false, "L2 to one multiprocessor, 128 KB in flight, bytes a cycle");
  rate(stream_registers<8>, 0, 1, false, "L2 to one multiprocessor, 32 KB ahead in registers, bytes a cycle");
  rate(stream_registers<16>, 0, 1, false, "L2 to one multiprocessor, 64 KB ahead in registers, bytes a cycle");
  rate(stream_shared<16>, 16 * kSlot, all, false, "L2 to each of all, in step, bytes a cycle");
  rate(stream_shared<16>, 16 * kSlot, all, true, "L2 to each of all, each elsewhere, bytes a cycle");
  CHECK(cudaFree(data));
}

// -- latencies: each load gives the address of the next

__global__ void link(char* memory, uint32_t lines) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  // A linear congruential generator visits all lines before it repeats one; lines is a power of two.
  const uint32_t next = (i * 1664525u + 1013904223u) & (lines - 1);
  if (i < lines) *reinterpret_cast<char**>(memory + size_t{i} * kLineBytes) = memory + size_t{next} * kLineBytes;
}

template <bool InL1>
__global__ void chase(const char* at, int steps, const char** end, long long* cycles) {
  const long long start = clock64();
  for (int i = 0; i < steps; i++) {
    uint64_t next;
    if (InL1)
      asm volatile("ld.global.u64 %0, [%1];" : "=l"(next) : "l"(at));
    else
      asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(next) : "l"(at));
    at = reinterpret_cast<const char*>(next);
  }
  *end = at;
  *cycles = clock64() - start;
}

// Cycles of one load, in a buffer that is chased through `warm` times before.
template <bool InL1>
double latency(const Device& device, char* memory, uint32_t lines, int steps, int warm) {
  link<<<(lines + kThreads - 1) / kThreads, kThreads>>>(memory, lines);
  CHECK(cudaGetLastError());
  const char** end = reinterpret_cast<const char**>(device.sums);
  for (int run = 0; run <= warm; run++) {
    if (warm == 0)
      CHECK(cudaMemset(memory + size_t{lines} * kLineBytes, 0, 256 << 20));  // takes the links' place in L2
    chase<InL1><<<1, 1>>>(memory, steps, end, device.cycles);
    CHECK(cudaGetLastError());
  }
  CHECK(cudaDeviceSynchronize());
  return mean_cycles(device, 1) / steps;
}

void measure_latencies(const Device& device) {
  constexpr size_t kFar = size_t{1} << 30;
  char* memory;
  CHECK(cudaMalloc(&memory, kFar + (256 << 20)));
  report("L1 latency, cycles", latency<true>(device, memory, (16 << 10) / kLineBytes, 1 << 16, 1));
  report("L2 latency, cycles", latency<false>(device, memory, (4 << 20) / kLineBytes, (4 << 20) / kLineBytes, 1));
  report("DRAM latency over 1 GB, cycles", latency<false>(device, memory, kFar / kLineBytes, 8192, 0));
  CHECK(cudaFree(memory));
}

// -- DRAM

__global__ void read_all(const uint4* data, size_t vectors, uint4* sums) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  uint4 sum = {};
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < vectors; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = i + j * stride < vectors ? streamed(data + i + j * stride) : uint4{};
#pragma unroll
    for (int j = 0; j < 8; j++) add(sum, v[j]);
  }
  if (sum.x == 0x12345678u && sum.y == 0x9abcdef0u)
    sums[threadIdx.x] = sum;  // hardly ever, but the compiler can't know
}

// The least of five, in seconds.
template <typename Work>
double seconds(Work work) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  float best = 1e30f;
  for (int run = 0; run < 6; run++) {
    CHECK(cudaEventRecord(begin));
    work();
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float milliseconds;
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (run > 0 && milliseconds < best) best = milliseconds;
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  return best / 1e3;
}

void measure_dram(const Device& device) {
  constexpr size_t kBytes = size_t{2} << 30;
  char* memory;
  CHECK(cudaMalloc(&memory, kBytes));
  CHECK(cudaMemset(memory, 1, kBytes));
  const double read = seconds([&] {
    read_all<<<device.multiprocessors * 4, 512>>>(reinterpret_cast<uint4*>(memory), kBytes / sizeof(uint4),
                                                  device.sums);
  });
  report("DRAM, read, TB/s", kBytes / read / 1e12);
  const double copied =
      seconds([&] { CHECK(cudaMemcpyAsync(memory, memory + kBytes / 2, kBytes / 2, cudaMemcpyDeviceToDevice)); });
  report("DRAM, read and written by a copy, TB/s", kBytes / copied / 1e12);
  CHECK(cudaFree(memory));
}

}  // namespace

// The rates of a GPU that the sampler's speed follows from. `python -m gpu.rates` compiles and runs this; it prints a
// JSON object a line, so that a run that is cut off keeps what it measured. Status 1, with the reason, if CUDA fails.
#include <cuda_runtime.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if 100 * __CUDACC_VER_MAJOR__ + __CUDACC_VER_MINOR__ < 1208  // which took it only with the order that is its own
#define RELAXED(scope)
#else
#define RELAXED(scope) ".relaxed" scope
#endif

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

__device__ void multiply_add(float (&s)[4], const uint4& a, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%8}, {%0,%1,%2,%3};"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b));
}

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

__global__ void chase_shared(int steps, uint32_t* end, long long* cycles) {
  __shared__ uint32_t ring[64];
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(ring));
  for (int i = 0; i < 64; i++) ring[i] = base + (i * 5 + 1) % 64 * 4;
  __syncthreads();
  uint32_t at = base;
  const long long start = clock64();
#pragma unroll 8
  for (int i = 0; i < steps; i++) asm volatile("ld.shared.u32 %0, [%0];" : "+r"(at)::"memory");
  *end = at;
  *cycles = clock64() - start;
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

// -- products and barriers

// Each warp multiplies `rounds` times in each of its chains; a product waits for the one before it in its chain.
template <int Chains>
__global__ void multiply(int rounds, float* sums, long long* cycles, unsigned long long* nanoseconds) {
  float s[Chains][4];
  const uint32_t any = threadIdx.x * 0x9e37'79b9u;
  const uint4 a{any, any + 1, any + 2, any + 3};  // pairs of bf16, whatever they are
  for (int c = 0; c < Chains; c++) s[c][0] = s[c][1] = s[c][2] = s[c][3] = 0;
  unsigned long long began, ended;
  __syncthreads();
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(began));
  const long long start = clock64();
  for (int i = 0; i < rounds; i++) {
#pragma unroll
    for (int c = 0; c < Chains; c++) multiply_add(s[c], a, 0x3f80'3f80);
  }
  float sum = 0;
#pragma unroll
  for (int c = 0; c < Chains; c++) sum += s[c][0] + s[c][1] + s[c][2] + s[c][3];
  sums[(blockIdx.x * blockDim.x + threadIdx.x) % kThreads] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  cycles[blockIdx.x] = clock64() - start;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ended));
  nanoseconds[blockIdx.x] = ended - began;
}

__global__ void meet(int times, long long* cycles) {
  __syncthreads();
  const long long start = clock64();
#pragma unroll 8
  for (int i = 0; i < times; i++) asm volatile("bar.sync 0;" ::: "memory");
  if (threadIdx.x == 0) *cycles = clock64() - start;
}

void measure_multiprocessor(const Device& device) {
  constexpr int kRounds = 4096;
  float* const sums = reinterpret_cast<float*>(device.sums);
  auto* const nanoseconds = reinterpret_cast<unsigned long long*>(device.cycles + device.multiprocessors);
  auto each = [&](auto kernel, int warps, double products, auto... arguments) {  // cycles of one, on a scheduler
    for (int run = 0; run < 2; run++) kernel<<<1, 32 * warps>>>(arguments...);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    return mean_cycles(device, 1) / products;
  };
  report("shared memory latency, cycles",
         each(chase_shared, 1, kRounds, kRounds, reinterpret_cast<uint32_t*>(device.sums), device.cycles));
  report("mma.sync, each waiting for the one before, cycles",
         each(multiply<1>, 1, kRounds, kRounds, sums, device.cycles, nanoseconds));
  report("mma.sync, 8 chains of one warp a scheduler, cycles",
         each(multiply<8>, 4, 8.0 * kRounds, kRounds, sums, device.cycles, nanoseconds));
  report("mma.sync, 8 chains of two warps a scheduler, cycles",
         each(multiply<8>, 8, 16.0 * kRounds, kRounds, sums, device.cycles, nanoseconds));
  report("__syncthreads of 256 threads, cycles", each(meet, 8, kRounds, kRounds, device.cycles));
  multiply<8><<<device.multiprocessors, kThreads>>>(200'000, sums, device.cycles, nanoseconds);  // some 15 ms
  CHECK(cudaGetLastError());
  CHECK(cudaDeviceSynchronize());
  const double cycles = mean_cycles(device, 1);
  unsigned long long took;
  CHECK(cudaMemcpy(&took, nanoseconds, sizeof took, cudaMemcpyDefault));
  report("SM clock while all multiply, GHz", cycles / static_cast<double>(took));
}

// -- clusters, from compute capability 9.0 on

// Ordered: what was written before it, to any memory, can be read after it, which takes a fence.
template <bool Ordered>
__device__ void meet_cluster() {
#if __CUDA_ARCH__ >= 900
  if (Ordered)
    asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
  else
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

template <bool Ordered>
__global__ void meet_blocks(int times, uint32_t*, long long* cycles) {
  meet_cluster<Ordered>();
  const long long start = clock64();
#pragma unroll 1
  for (int i = 0; i < times; i++) meet_cluster<Ordered>();
  if (blockIdx.x == 0 && threadIdx.x == 0) *cycles = clock64() - start;
}

// Block 0 follows addresses through the shared memory of block 1.
__global__ void chase_cluster([[maybe_unused]] int steps, [[maybe_unused]] uint32_t* end,
                              [[maybe_unused]] long long* cycles) {
#if __CUDA_ARCH__ >= 900
  __shared__ uint32_t ring[64];
  uint32_t other;
  asm("mapa.shared::cluster.u32 %0, %1, 1;" : "=r"(other) : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(ring))));
  for (int i = 0; i < 64; i++) ring[i] = other + (i * 5 + 1) % 64 * 4;
  meet_cluster<true>();
  if (blockIdx.x == 0) {
    uint32_t at = other;
    const long long start = clock64();
#pragma unroll 8
    for (int i = 0; i < steps; i++) asm volatile("ld.shared::cluster.u32 %0, [%0];" : "+r"(at)::"memory");
    *end = at;
    *cycles = clock64() - start;
  }
  meet_cluster<true>();  // the other block's memory is there until then
#endif
}

#if __CUDA_ARCH__ >= 900
__device__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// The same place in another block of the cluster.
__device__ uint32_t address_in(unsigned rank, uint32_t at) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(at), "r"(rank));
  return address;
}

__device__ void init_barrier(uint32_t at, int arrivals = 1) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}

// That arrival, and how many bytes this phase waits for.
__device__ void arrive_and_expect(uint32_t at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}

// Waits until the phase of this parity is over -> whether it is, which it should be by some 0.1 s after `start`.
__device__ bool phase_is_over(uint32_t at, unsigned parity, long long start) {
  while (true) {
    uint32_t is_over;
    asm volatile(
        "{.reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;}"
        : "=r"(is_over)
        : "r"(at), "r"(parity)
        : "memory");
    if (is_over) return true;
    if (clock64() - start > 1 << 28) return false;
  }
}

// Both addresses are another block's.
__device__ void send(uint32_t to, uint32_t value, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(value),
               "r"(barrier)
               : "memory");
}
#endif

enum class Message { none, arrival, number };

// Two blocks of one thread, each of which brings something to the other's mbarrier once the other has brought it
// something; or nothing, and then waits for what is over. *cycles < 0: one has waited in vain.
template <Message kMessage>
__global__ void exchange([[maybe_unused]] int times, uint32_t*, [[maybe_unused]] long long* cycles) {
#if __CUDA_ARCH__ >= 900
  __shared__ uint64_t barrier;
  __shared__ uint32_t number;
  const unsigned rank = cluster_rank();
  const uint32_t here = shared_address(&barrier), there = address_in(rank ^ 1, here);
  const uint32_t to = address_in(rank ^ 1, shared_address(&number));
  auto bring = [&] {
    if (kMessage == Message::arrival)
      asm volatile("mbarrier.arrive" RELAXED(".cluster") ".shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
    if (kMessage == Message::number) send(to, 1, there);
  };
  auto wait = [&](int time, long long since) {
    if (kMessage == Message::number) arrive_and_expect(here, 4);  // while the other's is on its way
    return phase_is_over(here, kMessage == Message::none ? 1 : time % 2, since);
  };
  init_barrier(here);
  meet_cluster<true>();
  bool met = true;
  const long long start = clock64();
  if (rank == 0) bring();
#pragma unroll 8
  for (int i = 0; i < times && met; i++) {
    met = wait(i, start);
    bring();
  }
  const long long end = clock64();
  if (rank == 1) met = met && wait(times, start);  // the last one, which block 0 has no answer to
  if (rank == 0) *cycles = met ? end - start : -1;
  meet_cluster<true>();
#endif
}

// All warps of a block arrive at its mbarrier, and wait until all have. *cycles: as above.
__global__ void meet_at_mbarrier([[maybe_unused]] int times, uint32_t*, [[maybe_unused]] long long* cycles) {
#if __CUDA_ARCH__ >= 900
  __shared__ uint64_t barrier;
  const uint32_t here = shared_address(&barrier);
  if (threadIdx.x == 0) init_barrier(here, blockDim.x / 32);
  __syncthreads();
  bool met = true;
  const long long start = clock64();
#pragma unroll 8
  for (int i = 0; i < times && met; i++) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(here) : "memory");
    met = phase_is_over(here, i % 2, start);
  }
  if (threadIdx.x == 0) *cycles = met ? clock64() - start : -1;
#endif
}

// All threads of block 0 send numbers to block 1 as fast as they can. A phase counts less than 1 MB. *cycles: as above.
__global__ void __launch_bounds__(kThreads, 1)
    flood([[maybe_unused]] int times, uint32_t*, [[maybe_unused]] long long* cycles) {
#if __CUDA_ARCH__ >= 900
  __shared__ uint64_t barrier;
  __shared__ uint32_t numbers[kThreads];
  const unsigned rank = cluster_rank();
  const uint32_t here = shared_address(&barrier), there = address_in(1, here);
  const uint32_t to = address_in(1, shared_address(numbers + threadIdx.x));
  if (rank == 1 && threadIdx.x == 0) init_barrier(here), arrive_and_expect(here, times * int{sizeof numbers});
  meet_cluster<true>();
  const long long start = clock64();
  if (rank == 0) {
#pragma unroll 8
    for (int i = 0; i < times; i++) send(to, i, there);
  } else if (threadIdx.x == 0) {
    const bool met = phase_is_over(here, 0, start);
    *cycles = met ? clock64() - start : -1;
  }
  __syncthreads();
  meet_cluster<true>();
#endif
}

// Cycles of each of `times`, by one cluster of so many blocks.
double in_cluster(const Device& device, void (*kernel)(int, uint32_t*, long long*), int blocks, int threads,
                  int times = 4096) {
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = 1;
  for (int run = 0; run < 2; run++)
    CHECK(cudaLaunchKernelEx(&config, kernel, int{times}, reinterpret_cast<uint32_t*>(device.sums), device.cycles));
  CHECK(cudaDeviceSynchronize());
  const double cycles = mean_cycles(device, 1);
  if (cycles >= 0) return cycles / times;
  std::fprintf(stderr, "blocks of a cluster have waited in vain for each other\n");
  std::exit(1);
}

void measure_clusters(const Device& device) {
  report("barrier of a cluster of 2 blocks, cycles", in_cluster(device, meet_blocks<true>, 2, kThreads));
  report("barrier of a cluster of 4 blocks, cycles", in_cluster(device, meet_blocks<true>, 4, kThreads));
  report("barrier of a cluster of 8 blocks, cycles", in_cluster(device, meet_blocks<true>, 8, kThreads));
  report("relaxed barrier of a cluster of 8 blocks, cycles", in_cluster(device, meet_blocks<false>, 8, kThreads));
  report("another block's shared memory latency, cycles", in_cluster(device, chase_cluster, 2, 32));
  const double waiting = in_cluster(device, exchange<Message::none>, 2, 1);
  report("mbarrier.try_wait for a phase that is over, cycles", waiting);
  report("arrival of 8 warps at their block's mbarrier, cycles",
         in_cluster(device, meet_at_mbarrier, 1, kThreads) - waiting);
  // Half a round trip, less what it takes to see that something has come.
  auto one_way = [&](auto kernel) { return in_cluster(device, kernel, 2, 1) / 2 - waiting; };
  report("arrival at another block's mbarrier, cycles", one_way(exchange<Message::arrival>));
  report("4 bytes to another block by st.async, cycles", one_way(exchange<Message::number>));
  constexpr int kFew = 64, kMany = 512;  // the difference leaves out how it begins and ends
  auto sending = [&](int times) { return in_cluster(device, flood, 2, kThreads, times) * times; };
  report("st.async to one other block, bytes a cycle",
         double{kMany - kFew} * kThreads * sizeof(uint32_t) / (sending(kMany) - sending(kFew)));
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  Device device{properties.multiProcessorCount, static_cast<int>(properties.sharedMemPerBlockOptin), nullptr, nullptr};
  report("multiprocessors", device.multiprocessors);
  report("L2, MB", properties.l2CacheSize / 1e6);
  CHECK(cudaMalloc(&device.sums, device.multiprocessors * kThreads * sizeof(uint4)));
  CHECK(cudaMalloc(&device.cycles, 2 * device.multiprocessors * sizeof(long long)));
  measure_l2_rates(device);
  measure_latencies(device);
  measure_multiprocessor(device);
  measure_dram(device);
  if (properties.major >= 9)
    measure_clusters(device);
  else
    std::printf("{\"clusters\": \"none before compute capability 9.0\"}\n");
}

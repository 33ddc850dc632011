// How fast blocks of a cluster meet, and send each other what they have.
#pragma once
#include "rates_device.h"

#if 100 * __CUDACC_VER_MAJOR__ + __CUDACC_VER_MINOR__ < 1208  // which took it only with the order that is its own
#define RELAXED(scope)
#else
#define RELAXED(scope) ".relaxed" scope
#endif

namespace {

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

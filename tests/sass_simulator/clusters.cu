// Kernels whose blocks exchange values by barriers (mbarriers), sends (st.async) and the barrier of their cluster.
#include <cstdint>

#if 100 * __CUDACC_VER_MAJOR__ + __CUDACC_VER_MINOR__ < 1208  // which took it only with the order that is its own
#define RELAXED(scope)
#else
#define RELAXED(scope) ".relaxed" scope
#endif

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ uint32_t of_block(uint32_t rank, uint32_t at) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
__device__ __forceinline__ void init_barrier(uint32_t at, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void expect_bytes(uint32_t at, int bytes) {
  asm volatile("mbarrier.expect_tx" RELAXED(".cta") ".shared::cta.b64 [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
__device__ __forceinline__ void arrive(uint32_t at) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
__device__ __forceinline__ void arrive(uint32_t at, uint32_t rank) {
  asm volatile("mbarrier.arrive" RELAXED(".cluster") ".shared::cluster.b64 _, [%0];" ::"r"(of_block(rank, at))
               : "memory");
}
__device__ __forceinline__ bool phase_is_over(uint32_t at, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{.reg .pred over; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;}"
      : "=r"(over)
      : "r"(at), "r"(parity)
      : "memory");
  return over;
}
__device__ __forceinline__ void send(uint32_t rank, uint32_t at, uint32_t value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(of_block(rank, at)),
      "r"(value), "r"(of_block(rank, barrier))
      : "memory");
}
__device__ __forceinline__ void send(uint32_t rank, uint32_t at, uint64_t value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(of_block(rank, at)),
      "l"(value), "r"(of_block(rank, barrier))
      : "memory");
}

extern __shared__ __align__(128) char memory[];
__device__ __forceinline__ uint32_t shared_memory() { return static_cast<uint32_t>(__cvta_generic_to_shared(memory)); }

// A ring: each round, every thread sends two numbers to the next block and reads those of the one before. Two slots in
// turn, each with a barrier that says when it is full, and one that says when it was read. A block may forget to say
// so.
extern "C" __global__ void __launch_bounds__(128)
    exchange(const uint32_t* in, uint32_t* out, int rounds, uint32_t blocks, uint32_t forgetful) {
  const uint32_t rank = cluster_rank(), next = rank + 1 == blocks ? 0 : rank + 1;
  const uint32_t previous = rank == 0 ? blocks - 1 : rank - 1;
  const uint32_t full = shared_memory(), read = full + 16, narrow = full + 128, wide = narrow + 2 * 512;
  const uint32_t thread = threadIdx.x;
  if (thread == 0)
    for (int slot = 0; slot < 2; slot++) {
      init_barrier(full + slot * 8, 1);
      init_barrier(read + slot * 8, 4);
    }
  sync_cluster();
  uint32_t x = in[blockIdx.x * 128 + thread];
  for (int round = 0; round < rounds; round++) {
    const uint32_t slot = round % 2, parity = round / 2 % 2;
    if (round >= 2)
      while (!phase_is_over(read + slot * 8, parity ^ 1)) {
      }
    if (thread == 0) {
      expect_bytes(full + slot * 8, 128 * 12);
      arrive(full + slot * 8);
    }
    send(next, narrow + slot * 512 + thread * 4, x, full + slot * 8);
    send(next, wide + slot * 1024 + thread * 8, uint64_t(x) * 0x300000005, full + slot * 8);
    while (!phase_is_over(full + slot * 8, parity)) {
    }
    const uint32_t y = *reinterpret_cast<uint32_t*>(memory + (narrow - full) + slot * 512 + thread * 4);
    const uint64_t z = *reinterpret_cast<uint64_t*>(memory + (wide - full) + slot * 1024 + thread * 8);
    x = x * 3 + y + static_cast<uint32_t>(z >> 32) + round;
    __syncwarp();
    if (thread % 32 == 0 && rank != forgetful) arrive(read + slot * 8, previous);
  }
  out[blockIdx.x * 128 + thread] = x;
  sync_cluster();
}

// A warp of each block: numbers go to and fro between blocks 0 and 1.
extern "C" __global__ void __launch_bounds__(32) ping_pong(uint32_t* out, int times) {
  const uint32_t rank = cluster_rank(), full = shared_memory(), lane = threadIdx.x;
  if (lane == 0) init_barrier(full, 1);
  sync_cluster();
  uint32_t x = lane;
  for (int time = 0; time < times; time++) {
    if (lane == 0) expect_bytes(full, 128), arrive(full);
    __syncwarp();
    if (rank == 0) send(1, full + 128 + lane * 4, x, full);
    while (!phase_is_over(full, time % 2)) {
    }
    x = *reinterpret_cast<volatile uint32_t*>(memory + 128 + lane * 4) + 1;
    if (rank == 1) send(0, full + 128 + lane * 4, x, full);
  }
  out[rank * 32 + lane] = x;
  sync_cluster();
}

// The same without numbers.
extern "C" __global__ void __launch_bounds__(32) nudge(int times) {
  const uint32_t rank = cluster_rank(), barrier = shared_memory();
  if (threadIdx.x == 0) init_barrier(barrier, 1);
  sync_cluster();
  for (int time = 0; time < times; time++) {
    if (rank == 0 && threadIdx.x == 0) arrive(barrier, 1);
    while (!phase_is_over(barrier, time % 2)) {
    }
    if (rank == 1 && threadIdx.x == 0) arrive(barrier, 0);
  }
  sync_cluster();
}

// All warps of block 0 send to block 1 as fast as they can.
extern "C" __global__ void __launch_bounds__(256) flood(int times) {
  const uint32_t barrier = shared_memory(), thread = threadIdx.x;
  if (thread == 0) {
    init_barrier(barrier, 1);
    if (cluster_rank() == 1) expect_bytes(barrier, times * 2048), arrive(barrier);
  }
  sync_cluster();
  if (cluster_rank() == 0)
    for (int time = 0; time < times; time++) send(1, barrier + 128 + thread * 8, uint64_t(time), barrier);
  else
    while (!phase_is_over(barrier, 0)) {
    }
}

// Stores to the neighbour's shared memory and to global memory, which all blocks see behind the barrier; and loads.
extern "C" __global__ void __launch_bounds__(64) neighbours(uint32_t* table, uint32_t* out, int times) {
  const uint32_t rank = cluster_rank(), mine = shared_memory() + threadIdx.x * 4;
  uint32_t sum = 0;
  for (int time = 0; time < times; time++) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(of_block(rank ^ 1, mine)), "r"(rank * 1000 + time)
                 : "memory");
    table[blockIdx.x * 64 + threadIdx.x] = threadIdx.x + time;
    sync_cluster();
    sum += *reinterpret_cast<volatile uint32_t*>(memory + threadIdx.x * 4);
    uint32_t stored;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(stored) : "r"(of_block(rank ^ 1, mine)) : "memory");
    sum += stored;
    sum += reinterpret_cast<volatile uint32_t*>(table)[(blockIdx.x ^ 1) * 64 + 63 - threadIdx.x];
    sync_cluster();
  }
  out[blockIdx.x * 64 + threadIdx.x] = sum;
}

extern "C" __global__ void barriers(int times) {
  for (int time = 0; time < times; time++) sync_cluster();
}

// Block r reads r + 1 rows, one after the other.
extern "C" __global__ void uneven(const uint32_t* rows, uint32_t* out) {
  uint32_t x = 0;
  for (uint32_t row = 0; row <= cluster_rank(); row++) x = rows[row * 4096 + x + threadIdx.x];
  out[blockIdx.x * 32 + threadIdx.x] = x;
}

// What a block may not do.
extern "C" __global__ void wrong(uint32_t which) {
  const uint32_t at = shared_memory();
  if (which == 0) arrive(at, cluster_rank() ^ 1);  // nobody began that barrier
  if (which == 1) arrive(at, 5);                   // of 2 blocks
  if (which == 2) asm volatile("st.shared::cta.u32 [%0], %0;" ::"r"(of_block(cluster_rank() ^ 1, at)) : "memory");
  if (which == 3) {  // one block waits for the other, which waits for nobody
    if (threadIdx.x == 0) init_barrier(at, 1);
    if (cluster_rank() == 1)
      while (!phase_is_over(at, 0)) {
      }
    sync_cluster();
  }
}

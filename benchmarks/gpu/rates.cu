// The rates of a GPU that the sampler's speed follows from. `python -m gpu.rates` compiles and runs this; it prints a
// JSON object a line, so that a run that is cut off keeps what it measured. Status 1, with the reason, if CUDA fails.
#include "rates_clusters.h"
#include "rates_device.h"
#include "rates_memory.h"

namespace {

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

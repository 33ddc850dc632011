// Small kernels that together use what the sampler's kernels do. test_execution.py computes the same with numpy.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

// A column of a masked convolution as products of 16-bit fragments: out[128, 8] = relu(w[128, k] . x[k, 8] + bias).
extern "C" __global__ void convolution(const uint4* weights, const __nv_bfloat16* x, const float* bias, float* out,
                                       int k) {
  extern __shared__ __nv_bfloat16 staged[];  // [8][k]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < 8 * k; i += blockDim.x) staged[i] = x[i];
  __syncthreads();
  float s[4] = {};
  for (int f = 0; f < k / 16; f++) {
    const uint4 a = weights[(warp * (k / 16) + f) * 32 + lane];
    const uint32_t* b = reinterpret_cast<const uint32_t*>(staged + lane / 4 * k + f * 16) + lane % 4;
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[4]));
  }
  for (int r = 0; r < 4; r++) {
    const int row = warp * 16 + lane / 4 + r / 2 * 8;
    out[row * 8 + lane % 4 * 2 + r % 2] = fmaxf(s[r] + bias[row], 0.f);
  }
}

// The largest number and its sum of exponentials, by shuffles; then a draw by inverse CDF with a scan in float64.
extern "C" __global__ void draw(const float* logits, const double* u, int* level, double* total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* mine = logits + warp * 256;
  float largest = -INFINITY;
  for (int k = lane; k < 256; k += 32) largest = fmaxf(largest, mine[k]);
  for (int by = 16; by; by /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, by));
  double before = 0;
  int found = -1;
  for (int chunk = 0; chunk < 2; chunk++) {  // 128 levels: four for each lane
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += exp(double(mine[chunk * 128 + lane * 4 + i] - largest));
    double scan = sum;
    for (int by = 1; by < 32; by *= 2) {
      const double other = __shfl_up_sync(~0u, scan, by);
      if (lane >= by) scan += other;
    }
    const unsigned hit = __ballot_sync(~0u, before + scan > u[warp]);
    if (hit && found < 0) found = chunk * 128 + (__ffs(hit) - 1) * 4;
    before += __shfl_sync(~0u, scan, 31);
  }
  if (lane == 0) level[warp] = found, total[warp] = before;
}

__device__ __noinline__ int steps_to_one(unsigned n) {
  int steps = 0;
  while (n != 1) n = n % 2 ? 3 * n + 1 : n / 2, steps++;
  return steps;
}
// Loops of different lengths in each lane, early returns, a switch, a call.
extern "C" __global__ void divergent(int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int x = steps_to_one(i + 1);
  switch (i % 7) {
    case 0: x += n; break;
    case 1: x ^= 0x55; break;
    case 2: x = x * x - n; break;
    case 3: x <<= 3; break;
    case 4: x = -x; break;
    case 5:
      for (int j = 0; j < i; j++) {
        if (j * n % 13 == 5) break;
        x += j;
      }
      break;
    default:
      if (x > 40) {
        out[i] = -1;
        return;
      }
  }
  if (i % 3 == 0) atomicAdd(&out[gridDim.x * blockDim.x], x);
  out[i] = x;
}

// 64-bit addresses and numbers, divisions and remainders of all widths.
extern "C" __global__ void integers(const int* a, const int* b, long long* out) {
  const int i = threadIdx.x, n = blockDim.x;
  const long long x = (long long)a[i] * 0x12345 + b[i], y = b[i] % 1000 + 1001;
  out[i] = a[i] / (b[i] | 1);
  out[n + i] = (unsigned)a[i] % ((unsigned)b[i] | 1);
  out[2 * n + i] = x / y;
  out[3 * n + i] = (unsigned long long)x % (unsigned long long)y;
  out[4 * n + i] = __popc(a[i]) | __clz(b[i]) << 8 | __brev(a[i] & 0xff) >> 8 | __ffs(b[i]) << 24;
  out[5 * n + i] = __umulhi(a[i], b[i]) + ((long long)__mulhi(a[i], b[i]) << 20);
  out[6 * n + i] = (x >> (a[i] & 63)) ^ (x << (b[i] & 63));
  out[7 * n + i] = __funnelshift_l(a[i], b[i], i) ^ __byte_perm(a[i], b[i], 0x7531) ^ (unsigned)max(min(a[i], 7), -9);
  out[8 * n + i] = __reduce_add_sync(~0u, a[i]);
}

extern "C" __global__ void floats(const float* x, const float* y, float* out, double* wide) {
  const int i = threadIdx.x, n = blockDim.x;
  out[i] = x[i] / y[i];
  out[n + i] = expf(x[i]);
  out[2 * n + i] = tanhf(x[i]);
  out[3 * n + i] = 1.f / (1.f + __expf(-x[i]));
  out[4 * n + i] = logf(fabsf(x[i]) + 1e-3f);
  out[5 * n + i] = rsqrtf(fabsf(y[i])) + sqrtf(fabsf(x[i]));
  out[6 * n + i] = floorf(x[i]) + rintf(y[i]) * 16 + truncf(x[i] * 3) * 256;
  out[7 * n + i] = __half2float(__float2half(x[i])) + __bfloat162float(__float2bfloat16(y[i]));
  out[8 * n + i] = int(x[i] * 100) + float(unsigned(fabsf(y[i]) * 1e9f));
  wide[i] = double(x[i]) / y[i];
  wide[n + i] = fma(double(x[i]), 1.0 / 3, log(double(fabsf(y[i]))));
  wide[2 * n + i] = exp(double(x[i])) + sqrt(double(fabsf(y[i]))) + (double(x[i]) > double(y[i]));
}

// cp.async into shared memory, two stages, zeros for every fifth; ldmatrix, transposed; stores of 16 bytes.
extern "C" __global__ void copies(const uint4* in, uint4* out, int rounds) {
  __shared__ alignas(128) uint4 stage[2][256];
  const unsigned base = (unsigned)__cvta_generic_to_shared(stage[0]);
  const auto fetch = [&](int round) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(base + (round % 2 * 256 + threadIdx.x) * 16),
                 "l"(in + round * 256 + threadIdx.x), "r"(threadIdx.x % 5 ? 16 : 0));
    asm volatile("cp.async.commit_group;");
  };
  fetch(0);
  for (int round = 0; round < rounds; round++) {
    if (round + 1 < rounds) fetch(round + 1);
    if (round + 1 < rounds)
      asm volatile("cp.async.wait_group 1;");
    else
      asm volatile("cp.async.wait_group 0;");
    __syncthreads();
    uint4 v;
    const unsigned row = base + (round % 2 * 256 + (threadIdx.x ^ 32)) * 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(row));
    out[round * 256 + threadIdx.x] = v;
    asm volatile("pmevent 0;");
    __syncthreads();
  }
}

// A pointer that may be to either memory; local arrays; a barrier for some warps; a flag that one warp waits for.
extern "C" __global__ void pointers(int* data, int* out, int which) {
  __shared__ int own[256];
  __shared__ volatile int flag;
  int many[40];
  const int i = threadIdx.x;
  if (i == 0) flag = 0;
  own[i] = 1000 + i;
  __syncthreads();
  if (i < 64) {
    while (flag != 3) {
    }
    asm volatile("bar.sync 1, 96;");
  } else if (i < 96) {
    if (i == 64) flag = 3;
    asm volatile("bar.arrive 1, 96;");
  }
  int* either = (i + which) % 2 ? own : data;
  for (int j = 0; j < 40; j++) many[j] = either[(i + j) % 256];
  int x = 0;
  for (int j = 0; j < 40; j++) x = x * 3 + many[(j * i + which) % 40];
  __syncthreads();
  either[i] = x;
  __syncthreads();
  out[i] = own[i] + data[i] + __syncthreads_count(x > 0);
}

// One instruction set's kernels for the layers' ops. As in kernels.cpp, nothing but the tables has external linkage.
#include "cpu/ops/layer_kernels.h"

#include "cpu/ops/logistic_mixture_kernels.h"
#include "cpu/simd/exponential.h"

namespace pcf::cpu {
namespace {

template <class T>
inline T clamped(T x, T limit) {  // keeps NaN
  return x < -limit ? -limit : x > limit ? limit : x;
}

// tanh(a) = (1 - p) / (1 + p) and logistic(b) = 1 / (1 + q): p = exp(-2a), q = exp(-b).
template <class T>
struct Gate {
  T p, q;
  Gate(T a, T b) : p(exponential(T(-2) * clamped(a, T(30)))), q(exponential(-b)) {}
  T value() const { return (T(1) - p) / ((T(1) + p) * (T(1) + q)); }
};

// Calls f(i, a, b) for each i, with the conditions added.
template <class E, class F>
inline void each_pair(const GateInput<E>& in, int64_t n, F f) {
  using T = Computed<E>;
  const E *a = in.a, *b = in.b, *ca = in.condition_a, *cb = in.condition_b;
  if (!ca) {
    for (int64_t i = 0; i < n; i++) f(i, convert<T>(a[i]), convert<T>(b[i]));
  } else if (in.condition_stride) {
    for (int64_t i = 0; i < n; i++) f(i, convert<T>(a[i]) + convert<T>(ca[i]), convert<T>(b[i]) + convert<T>(cb[i]));
  } else {
    const T add_a = convert<T>(*ca), add_b = convert<T>(*cb);
    for (int64_t i = 0; i < n; i++) f(i, convert<T>(a[i]) + add_a, convert<T>(b[i]) + add_b);
  }
}

// Flat, since a call of exp for each number would keep these loops from being vectorized.
template <class E>
__attribute__((flatten)) void gate(const GateInput<E>& in, E* __restrict__ out, int64_t n) {
  using T = Computed<E>;
  if (in.linear) return each_pair(in, n, [=](int64_t i, T a, T b) { out[i] = convert<E>(a * logistic(b)); });
  each_pair(in, n, [=](int64_t i, T a, T b) { out[i] = convert<E>(Gate<T>(a, b).value()); });
}

template <class E>
__attribute__((flatten)) void gate_gradient(const GateInput<E>& in, const E* grad, E* __restrict__ grad_a,
                                            E* __restrict__ grad_b, int64_t n) {
  using T = Computed<E>;
  if (in.linear)
    return each_pair(in, n, [=](int64_t i, T a, T b) {
      const T s = logistic(b), d = convert<T>(grad[i]);
      grad_a[i] = convert<E>(d * s);
      grad_b[i] = convert<E>(d * a * s * (T(1) - s));
    });
  each_pair(in, n, [=](int64_t i, T a, T b) {
    const Gate<T> g(a, b);
    const T t = (T(1) - g.p) / (T(1) + g.p), s = T(1) / (T(1) + g.q), d = convert<T>(grad[i]);
    grad_a[i] = convert<E>(d * s * (T(1) - t * t));
    grad_b[i] = convert<E>(d * t * s * (T(1) - s));
  });
}

template <class E>
void concat_elu(const E* x, E* __restrict__ a, E* __restrict__ b, int64_t n) {
  using T = Computed<E>;
  for (int64_t i = 0; i < n; i++) {
    const T v = convert<T>(x[i]), below = exponential(v < 0 ? v : -v) - T(1);
    a[i] = convert<E>(v > 0 ? v : below);
    b[i] = convert<E>(v < 0 ? -v : below);
  }
}

template <class E>
void concat_elu_gradient(const E* a, const E* b, const E* grad_a, const E* grad_b, E* __restrict__ grad_x, int64_t n) {
  using T = Computed<E>;
  const auto slope = [](T y) { return y > 0 ? T(1) : y + T(1); };
  for (int64_t i = 0; i < n; i++)
    grad_x[i] =
        convert<E>(convert<T>(grad_a[i]) * slope(convert<T>(a[i])) - convert<T>(grad_b[i]) * slope(convert<T>(b[i])));
}

// -- likelihood. Each lane has a sum of its own, so loops vectorize without reordering the sums of the source.

constexpr int kAtOnce = 32;  // numbers that are computed side by side

template <class E, class T = Computed<E>>
double log_sum_exp_of_row(const E* logits, int64_t stride, int levels) {
  T high[kAtOnce], sum[kAtOnce] = {};
  for (int j = 0; j < kAtOnce; j++) high[j] = -__builtin_inf();
  int k = 0;
  for (; stride == 1 && k + kAtOnce <= levels; k += kAtOnce)
    for (int j = 0; j < kAtOnce; j++) {
      const T v = convert<T>(logits[k + j]);
      high[j] = high[j] > v ? high[j] : v;
    }
  for (; k < levels; k++) {
    const T v = convert<T>(logits[k * stride]);
    high[0] = high[0] > v ? high[0] : v;
  }
  T top = high[0];
  for (int j = 1; j < kAtOnce; j++) top = high[j] > top ? high[j] : top;
  for (k = 0; stride == 1 && k + kAtOnce <= levels; k += kAtOnce)
    for (int j = 0; j < kAtOnce; j++) sum[j] += exponential(convert<T>(logits[k + j]) - top);
  double total = 0;
  for (int j = 0; j < kAtOnce; j++) total += sum[j];
  for (; k < levels; k++) total += exponential(convert<T>(logits[k * stride]) - top);
  return top + std::log(total);
}

// kAtOnce sub-pixels side by side in memory.
template <class E, class T = Computed<E>>
void log_sum_exp_of_columns(const E* logits, int64_t level_stride, int levels, double* out) {
  constexpr int kPart = 16;  // levels that are summed before they join the total, so that fewer roundings add up
  T high[kAtOnce], total[kAtOnce] = {};
  for (int j = 0; j < kAtOnce; j++) high[j] = -__builtin_inf();
  for (int k = 0; k < levels; k++)
    for (int j = 0; j < kAtOnce; j++) {
      const T v = convert<T>(logits[k * level_stride + j]);
      high[j] = high[j] > v ? high[j] : v;
    }
  for (int part = 0; part < levels; part += kPart) {
    T sum[kAtOnce] = {};
    for (int k = part; k < levels && k < part + kPart; k++)
      for (int j = 0; j < kAtOnce; j++) sum[j] += exponential(convert<T>(logits[k * level_stride + j]) - high[j]);
    for (int j = 0; j < kAtOnce; j++) total[j] += sum[j];
  }
  for (int j = 0; j < kAtOnce; j++) out[j] = high[j] + std::log(double{total[j]});
}

template <class E>
void log_sum_exp(const Logits<E>& l, int n, double* out) {
  int i = 0;
  for (; l.stride == 1 && i + kAtOnce <= n; i += kAtOnce)
    log_sum_exp_of_columns(l.data + i, l.level_stride, l.levels, out + i);
  for (; i < n; i++) out[i] = log_sum_exp_of_row(l.data + i * l.stride, l.level_stride, l.levels);
}

// A log-sum-exp in two parts of the computed type, so that subtracting it loses nothing.
template <class T>
struct Split {
  T high, low;
  explicit Split(double x) : high(static_cast<T>(x)), low(static_cast<T>(x - static_cast<double>(high))) {}
  T probability(T logit) const { return exponential((logit - high) - low); }
};

template <class E, class T = Computed<E>>
void nll_gradient(const Logits<E>& l, int n, const double* log_sum_exp, const int64_t* target, int64_t ignored, T scale,
                  E* grad) {
  int i = 0;
  for (; l.stride == 1 && i + kAtOnce <= n; i += kAtOnce) {
    T high[kAtOnce], low[kAtOnce];
    for (int j = 0; j < kAtOnce; j++) {
      const Split<T> split(log_sum_exp[i + j]);
      high[j] = split.high, low[j] = split.low;
    }
    for (int k = 0; k < l.levels; k++) {
      const E* __restrict__ from = l.data + i + k * l.level_stride;
      E* __restrict__ to = grad + i + k * l.level_stride;
      for (int j = 0; j < kAtOnce; j++)
        to[j] = convert<E>(scale * exponential((convert<T>(from[j]) - high[j]) - low[j]));
    }
  }
  for (; i < n; i++) {
    const E* __restrict__ from = l.data + i * l.stride;
    E* __restrict__ to = grad + i * l.stride;
    const Split<T> split(log_sum_exp[i]);
    if (l.level_stride == 1)
      for (int k = 0; k < l.levels; k++) to[k] = convert<E>(scale * split.probability(convert<T>(from[k])));
    else
      for (int64_t k = 0; k < l.levels * l.level_stride; k += l.level_stride)
        to[k] = convert<E>(scale * split.probability(convert<T>(from[k])));
  }
  for (i = 0; i < n; i++) {  // computed anew, so that bfloat16 is rounded only once
    if (target[i] == ignored) {
      for (int k = 0; k < l.levels; k++) grad[i * l.stride + k * l.level_stride] = E{};
      continue;
    }
    const int64_t at = i * l.stride + target[i] * l.level_stride;
    grad[at] = convert<E>(scale * (Split<T>(log_sum_exp[i]).probability(convert<T>(l.data[at])) - T(1)));
  }
}

// -- sums of rows, in pieces that stay in registers

constexpr int kPiece = 32;

template <int terms, class T>
void combine_terms(const RowTerm<T>* term, T* const* out, int rows, int width) {
  T factor[terms];
  for (int k = 0; k < terms; k++) factor[k] = term[k].factor;
  for (int r = 0; r < rows; r++) {
    const T* row[terms];
    for (int k = 0; k < terms; k++) row[k] = term[k].rows[r] + term[k].offset;
    T* const to = out[r];
    int i = 0;
    for (; i + kPiece <= width; i += kPiece) {
      T sum[kPiece];
      for (int j = 0; j < kPiece; j++) sum[j] = factor[0] * row[0][i + j];
#pragma GCC unroll 6
      for (int k = 1; k < terms; k++)
        for (int j = 0; j < kPiece; j++) sum[j] += factor[k] * row[k][i + j];
      for (int j = 0; j < kPiece; j++) to[i + j] = sum[j];
    }
    for (; i < width; i++) {
      T sum = factor[0] * row[0][i];
      for (int k = 1; k < terms; k++) sum += factor[k] * row[k][i];
      to[i] = sum;
    }
  }
}

template <class T>
void combine(const RowTerm<T>* term, int terms, T* const* out, int rows, int width) {
  constexpr void (*of_terms[])(const RowTerm<T>*, T* const*, int, int) = {combine_terms<1, T>, combine_terms<2, T>,
                                                                          combine_terms<3, T>, combine_terms<4, T>,
                                                                          combine_terms<5, T>, combine_terms<6, T>};
  of_terms[terms - 1](term, out, rows, width);
}

template <class T>
void add_up(const T* const* rows, int n, T* to, int width) {
  int i = 0;
  for (; i + kPiece <= width; i += kPiece) {
    T sum[kPiece] = {};
    for (int r = 0; r < n; r++)
      for (int j = 0; j < kPiece; j++) sum[j] += rows[r][i + j];
    for (int j = 0; j < kPiece; j++) to[i + j] += sum[j];
  }
  for (; i < width; i++) {
    T sum = 0;
    for (int r = 0; r < n; r++) sum += rows[r][i];
    to[i] += sum;
  }
}

// -- recurrences

// n: a number, or a constant, which lets the loop become straight code.
template <class E, class N>
inline void cell(const CellForward<E>& p, int hidden, int first, N n) {
  using T = Computed<E>;
  const E *sums = p.sums + first, *sums_f = sums + hidden, *sums_g = sums_f + hidden, *sums_o = sums_g + hidden;
  T i[kCellChannels], f[kCellChannels], g[kCellChannels], o[kCellChannels], c[kCellChannels], h[kCellChannels];
  for (int j = 0; j < n; j++) {
    i[j] = logistic(convert<T>(sums[j]) + p.products[j]);
    f[j] = logistic(convert<T>(sums_f[j]) + p.products[kCellChannels + j]);
    g[j] = hyperbolic_tangent(convert<T>(sums_g[j]) + p.products[2 * kCellChannels + j]);
    o[j] = logistic(convert<T>(sums_o[j]) + p.products[3 * kCellChannels + j]);
    c[j] = f[j] * p.c[first + j] + i[j] * g[j];
    h[j] = o[j] * hyperbolic_tangent(c[j]);
  }
  for (int j = 0; j < n; j++) p.c[first + j] = c[j], p.h[first + j] = h[j], p.out[first + j] = convert<E>(h[j]);
  if (!p.gates) return;
  E* gates = p.gates + first;
  for (int j = 0; j < n; j++) {
    gates[j] = convert<E>(i[j]), gates[hidden + j] = convert<E>(f[j]);
    gates[2 * hidden + j] = convert<E>(g[j]), gates[3 * hidden + j] = convert<E>(o[j]);
  }
}

struct AllCellChannels {
  constexpr operator int() const { return kCellChannels; }
};

template <class E>
void cells(const CellForward<E>* p, int pixels, int hidden, int first, int n) {
  if (n == kCellChannels)
    for (int r = 0; r < pixels; r++) cell(p[r], hidden, first, AllCellChannels());
  else
    for (int r = 0; r < pixels; r++) cell(p[r], hidden, first, n);
}

template <class E>
void cell_of_gates(const E* gates, const Computed<E>* before, Computed<E>* __restrict__ c, int hidden) {
  using T = Computed<E>;
  const E *f = gates + hidden, *g = f + hidden;
  for (int j = 0; j < hidden; j++) c[j] = convert<T>(f[j]) * before[j] + convert<T>(gates[j]) * convert<T>(g[j]);
}

template <class E, class N>
inline void cell_gradient(const CellBackward<E>& p, int hidden, int first, N n) {
  using T = Computed<E>;
  const E *gate_i = p.gates + first, *gate_f = gate_i + hidden, *gate_g = gate_f + hidden, *gate_o = gate_g + hidden;
  T of_gate[4][kCellChannels], of_before[kCellChannels];
  for (int j = 0; j < n; j++) {
    const T i = convert<T>(gate_i[j]), f = convert<T>(gate_f[j]), g = convert<T>(gate_g[j]), o = convert<T>(gate_o[j]);
    const T t = hyperbolic_tangent(p.c[first + j]), of_h = convert<T>(p.grad[first + j]) + p.grad_h[first + j];
    const T of_c = p.grad_c[first + j] + of_h * o * (T(1) - t * t);
    of_gate[0][j] = of_c * g * i * (T(1) - i);
    of_gate[1][j] = of_c * p.before[first + j] * f * (T(1) - f);
    of_gate[2][j] = of_c * i * (T(1) - g * g);
    of_gate[3][j] = of_h * t * o * (T(1) - o);
    of_before[j] = of_c * f;
  }
  for (int j = 0; j < n; j++) p.grad_c[first + j] = of_before[j];
  for (int k = 0, at = first; k < 4; k++, at += hidden)
    for (int j = 0; j < n; j++) {
      p.grad_products[at + j] = of_gate[k][j];
      p.grad_sums[at + j] = convert<E>(of_gate[k][j]);
    }
}

template <class E>
void cell_gradients(const CellBackward<E>* p, int pixels, int hidden) {
  for (int r = 0; r < pixels; r++) {
    int first = 0;
    for (; first + kCellChannels <= hidden; first += kCellChannels)
      cell_gradient(p[r], hidden, first, AllCellChannels());
    if (first < hidden) cell_gradient(p[r], hidden, first, hidden - first);
  }
}

template <class E>
constexpr LayerKernels<E> table() {
  using T = Computed<E>;
  return {.gate = gate<E>,
          .gate_gradient = gate_gradient<E>,
          .concat_elu = concat_elu<E>,
          .concat_elu_gradient = concat_elu_gradient<E>,
          .log_sum_exp = log_sum_exp<E>,
          .nll_gradient = nll_gradient<E>,
          .mixture_log_sum_exp = mixture_log_sum_exp<T>,
          .mixture_gradient = mixture_gradient<T>,
          .combine = combine<T>,
          .add_up = add_up<T>,
          .cells = cells<E>,
          .cell_of_gates = cell_of_gates<E>,
          .cell_gradients = cell_gradients<E>};
}

}  // namespace

#define PCF_JOIN_(a, b) a##b
#define PCF_JOIN(a, b) PCF_JOIN_(a, b)
#define PCF_TABLE(name, E)                              \
  extern const LayerKernels<E> PCF_JOIN(name, PCF_ISA); \
  const LayerKernels<E> PCF_JOIN(name, PCF_ISA) = table<E>();
PCF_TABLE(layer_kernels_f32_, float)
PCF_TABLE(layer_kernels_f64_, double)
PCF_TABLE(layer_kernels_bf16_, Bfloat16)

}  // namespace pcf::cpu

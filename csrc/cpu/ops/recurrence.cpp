#include "cpu/ops/recurrence.h"

#include <algorithm>
#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/ops/neighbours.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/threads/barrier.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

// States of one step that are computed together: enough to fill matrix products, few enough for the L2 cache.
constexpr int kForwardStates = 256, kBackwardStates = 128;

// A recurrence as steps along a line of positions. The state of position p at step s depends on the states of
// neighbouring positions at step s - 1, the first of which is p + first(), and continues the cell of p at step s - 1.
// Rows: steps are rows and positions columns. Diagonals: steps are diagonals and positions rows, so that the pixel
// above is position p - 1, and the one to the left is p.
class Walk {
 public:
  Walk(const StateToState& r, int height, int width) : r_(r), height_(height), width_(width) {}

  int steps() const { return r_.diagonal ? height_ + width_ - 1 : height_; }
  int positions() const { return r_.diagonal ? height_ : width_; }
  int first() const { return r_.diagonal ? -1 : -(r_.taps / 2); }
  int outside() const { return r_.diagonal ? 1 : 0; }  // positions before the first that hold an initial state

  // The positions that have a pixel at a step; none before the first step.
  int begin(int step) const { return r_.diagonal ? std::max(0, step - width_ + 1) : 0; }
  int end(int step) const { return step < 0 ? 0 : r_.diagonal ? std::min(height_, step + 1) : width_; }
  bool active(int p, int step) const { return p >= begin(step) && p < end(step); }

  int pixels() const { return height_ * width_; }
  int pixel(int step, int p) const { return y(step, p) * width_ + x(step, p); }
  int y(int step, int p) const { return r_.diagonal ? p : step; }
  int x(int step, int p) const {
    if (!r_.diagonal) return p;
    return r_.reverse ? width_ - 1 - (step - p) : step - p;
  }

 private:
  const StateToState& r_;
  const int height_, width_;
};

// Some images of a map with the channels of a pixel side by side: the map's own memory, or a copy.
template <class E>
class Pixels {
 public:
  Pixels(const FeatureMap& map, int first, int images)
      : map_(map), first_(first), images_(images), in_place_(map.stride_c == 1 || map.channels == 1) {
    if (!in_place_) copy_.resize(int64_t{images} * map.height * map.width * map.channels);
  }
  void load() {
    for (int n = 0; !in_place_ && n < images_; n++)
      load_rows<E>(map_, first_ + n, 0, map_.height, [&](int y) { return at(n, y, 0); }, 1, map_.channels);
  }
  void store() {
    for (int n = 0; !in_place_ && n < images_; n++)
      store_rows<E>(map_, first_ + n, 0, map_.height, [&](int y) { return at(n, y, 0); }, 1, map_.channels);
  }
  E* at(int n, int y, int x) {
    if (!in_place_) return copy_.data() + ((int64_t{n} * map_.height + y) * map_.width + x) * map_.channels;
    return static_cast<E*>(map_.data) + (first_ + n) * map_.stride_n + y * map_.stride_y + x * map_.stride_x;
  }

 private:
  const FeatureMap& map_;
  const int first_, images_;
  const bool in_place_;
  std::vector<E> copy_;
};

// The sums of groups of positions (neighbours.h), and the outputs they come to.
template <class T>
class GroupSums {
 public:
  GroupSums(const NeighbourWeights<T>& weights, int groups, int width)
      : weights_(weights), scheme_(weights.scheme), width_(width), outputs_(scheme_.outputs), sums_(scheme_.sums()),
        memory_((int64_t{scheme_.outputs + scheme_.sums()} * groups + 1) * width * sizeof(T)) {
    T* next = reinterpret_cast<T*>(memory_.get());
    zeros_.assign(groups, next);
    const auto take = [&] { return rows_from(std::exchange(next, next + int64_t{groups} * width), groups, width); };
    next += width;
    for (auto& rows : outputs_) rows = take();
    for (int s = 0; s < scheme_.sums(); s++) {
      const int only = scheme_.only_output(s);
      sums_[s] = only < 0 ? take() : outputs_[only];
    }
  }
  void begin() { begun_.assign(scheme_.sums(), false); }
  void multiply(size_t i, Rows<const T> x, int groups, int first) {
    const int sum = scheme_.products[i].sum;
    const Rows<const T> from = begun_[sum] ? const_cast<Rows<const T>>(sums_[sum].data()) : zeros_.data();
    weights_.multiply(i, x, groups, first, width_, from, sums_[sum].data());
    begun_[sum] = true;
  }
  void finish(const LayerKernels<T>& k, int groups) {
    for (int i = 0; i < scheme_.outputs; i++) {
      Combination<T> parts;
      for (int s = 0; s < scheme_.sums(); s++)
        if (begun_[s]) parts.add(sums_[s].data(), 0, scheme_.part(i, s));
      parts.write(k, outputs_[i].data(), groups, width_);
    }
  }
  const T* at(int group, int i) const { return outputs_[i][group]; }

 private:
  const NeighbourWeights<T>& weights_;
  const Scheme& scheme_;
  const int width_;
  std::vector<std::vector<T*>> outputs_, sums_;
  std::vector<bool> begun_;
  std::vector<const T*> zeros_;
  ZeroedBlock memory_;
};

// States of a line of positions for each of some images, with room before and after it.
template <class T>
class Lines {
 public:
  Lines(int images, int before, int positions, int after, int channels)
      : channels_(channels), before_(before), length_(before + positions + after),
        memory_(int64_t{images} * length_ * channels * sizeof(T)) {}
  T* at(int n, int p) { return reinterpret_cast<T*>(memory_.get()) + (int64_t{n} * length_ + before_ + p) * channels_; }

 private:
  const int channels_, before_, length_;
  ZeroedBlock memory_;
};

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
int round_down(int n, int multiple) { return n - ((n % multiple) + multiple) % multiple; }  // also below 0

// Calls f(first, images, group) for groups of images.
template <class F>
void each_group(int images, int positions, int states, int threads, const F& f) {
  const int fit = std::max(1, states / std::max(positions, 1));
  const int groups = std::max((images + fit - 1) / fit, std::min(threads, images));
  parallel(threads, groups, [&](int, int i) {
    const int first = int64_t{images} * i / groups, last = int64_t{images} * (i + 1) / groups;
    f(first, last - first, i);
  });
}

// One of the threads that compute an image together.
struct Member {
  int index, members;
  SpinBarrier* barrier;
  void wait() const {
    if (members > 1) barrier->wait(index, members);
  }
};

template <class E>
class Scan {
  using T = Computed<E>;

 public:
  Scan(const StateToState& r, int hidden, int height, int width)
      : r_(r), walk_(r, height, width), hidden_(hidden), isa_(chosen_isa()), kernels_(layer_kernels<E>(isa_)) {}

  void forward(const FeatureMap& sums, const FeatureMap& h, const FeatureMap& gates, int threads) const {
    constexpr int kWidth = 4 * kCellChannels;  // kCellChannels of each gate
    const NeighbourWeights<T> weights(
        isa_, scheme(), r_.taps, hidden_, round_up(hidden_, kCellChannels) * 4,
        by_element(hidden_,
                   [&](int j, int in, int column) {
                     const int gate = column % kWidth / kCellChannels;
                     const int channel = column / kWidth * kCellChannels + column % kCellChannels;
                     return channel < hidden_ ? weight(gate * hidden_ + channel, in, j) : T(0);
                   }),
        threads);
    const int members = threads / sums.images;
    if (members < 2) {
      each_group(sums.images, walk_.positions(), kForwardStates, threads, [&](int first, int images, int) {
        Forward group(*this, weights, sums, h, gates, first, images);
        group.run({0, 1, nullptr});
        group.store();
      });
      return;
    }
    std::vector<Forward> images;
    std::vector<SpinBarrier> barriers;
    for (int n = 0; n < sums.images; n++) {
      images.emplace_back(*this, weights, sums, h, gates, n, 1);
      barriers.emplace_back(members);
    }
    run_team(sums.images * members, [&](int member) {
      const int n = member / members;
      images[n].run({member % members, members, &barriers[n]});
    });
    for (Forward& image : images) image.store();
  }

  void backward(const FeatureMap& grad, const FeatureMap& gates, const FeatureMap& grad_sums, E* grad_h0, E* grad_c0,
                int threads) const {
    const NeighbourWeights<T> weights(
        isa_, scheme(), r_.taps, 4 * hidden_, round_up(hidden_, kernels<T>(isa_).block),
        by_element(4 * hidden_,
                   [&](int j, int out, int in) { return in < hidden_ ? weight(out, in, r_.taps - 1 - j) : T(0); }),
        threads);
    std::vector<std::vector<T>> initial(grad.images, std::vector<T>(2 * hidden_));
    each_group(grad.images, walk_.positions(), kBackwardStates, threads, [&](int first, int images, int group) {
      Pixels<E> of_h(grad, first, images), kept(gates, first, images), of_sums(grad_sums, first, images);
      of_h.load(), kept.load();
      backward(weights, images, of_h, kept, of_sums, initial[group].data());
      of_sums.store();
    });
    for (int j = 0; j < hidden_; j++) {
      T h = 0, c = 0;
      for (const auto& part : initial) h += part[j], c += part[hidden_ + j];
      grad_h0[j] = convert<E>(h), grad_c0[j] = convert<E>(c);
    }
  }

 private:
  // In rows, what fours read beyond the taps lies in the row before, and so before the pixel. Not so in diagonals.
  Scheme scheme() const { return r_.diagonal ? Scheme(2, r_.taps) : Scheme::of_line(r_.taps, walk_.positions()); }

  // weight(j, d, c): of W_j [depth, channels] -> what fills a block of channels.
  template <class Weight>
  auto by_element(int depth, const Weight& weight) const {
    return [depth, weight, block = kernels<T>(isa_).block](int j, int first, T* to) {
      for (int d = 0; d < depth; d++)
        for (int k = 0; k < block; k++) to[int64_t{d} * block + k] = weight(j, d, first + k);
    };
  }
  T weight(int gate, int in, int tap) const {
    return convert<T>(static_cast<const E*>(r_.weight)[(int64_t{gate} * hidden_ + in) * r_.taps + tap]);
  }
  std::vector<T> initial(const void* state) const {
    std::vector<T> values(hidden_);
    for (int j = 0; state && j < hidden_; j++) values[j] = convert<T>(static_cast<const E*>(state)[j]);
    return values;
  }

  // Some images that are computed together.
  class Forward {
   public:
    Forward(const Scan& scan, const NeighbourWeights<T>& weights, const FeatureMap& sums, const FeatureMap& h,
            const FeatureMap& gates, int first, int images)
        : scan_(scan), weights_(weights), images_(images), positions_(scan.walk_.positions()),
          group_(weights.scheme.outputs), most_(images * (positions_ / group_ + 2)), sums_(sums, first, images),
          out_(h, first, images), gates_(gates, first, images), keeps_gates_(gates.data != nullptr),
          h_(images, group_ - scan.walk_.first(), positions_, scan.r_.taps + group_, scan.hidden_),
          c_(images, 0, positions_, 0, scan.hidden_),
          rows_(weights.scheme.products.size() * most_ * weights.depth * sizeof(T)) {
      sums_.load();
      const std::vector<T> h0 = scan.initial(scan.r_.h0), c0 = scan.initial(scan.r_.c0);
      for (int n = 0; n < images; n++)
        for (int p = -scan.walk_.outside(); p < positions_; p++) {
          std::copy_n(h0.data(), scan.hidden_, h_.at(n, p));
          if (p >= 0) std::copy_n(c0.data(), scan.hidden_, c_.at(n, p));
        }
    }

    // Each member does some of the channels.
    void run(const Member& member) {
      const Walk& walk = scan_.walk_;
      const int hidden = scan_.hidden_;
      std::vector<std::vector<T*>> rows(weights_.scheme.products.size());
      for (size_t i = 0; i < rows.size(); i++)
        rows[i] = rows_from(static_cast<T*>(rows_.data()) + i * most_ * weights_.depth, most_, hidden);
      GroupSums<T> group_sums(weights_, most_, 4 * kCellChannels);
      std::vector<const T*> x;
      std::vector<CellForward<E>> pixels;
      for (int step = 0; step < walk.steps(); step++) {
        const int begin = walk.begin(step), end = walk.end(step);
        x.clear(), pixels.clear();
        for (int n = 0; n < images_; n++)
          for (int group = round_down(begin, group_); group < end; group += group_) {
            for (int p = std::max(group, begin); p < std::min(group + group_, end); p++) {
              const int py = walk.y(step, p), px = walk.x(step, p);
              pixels.push_back({group_sums.at(static_cast<int>(x.size()), p - group), sums_.at(n, py, px), c_.at(n, p),
                                h_.at(n, p), out_.at(n, py, px), keeps_gates_ ? gates_.at(n, py, px) : nullptr});
            }
            x.push_back(h_.at(n, group + walk.first()));
          }
        const int groups = static_cast<int>(x.size());
        const int first = groups * member.index / member.members, last = groups * (member.index + 1) / member.members;
        for (size_t i = 0; i < rows.size(); i++)
          weights_.prepare(i, x.data() + first, hidden, last - first, rows[i].data() + first);
        member.wait();
        for (int channel = member.index * kCellChannels; channel < hidden; channel += member.members * kCellChannels) {
          group_sums.begin();
          for (size_t i = 0; i < rows.size(); i++) group_sums.multiply(i, rows[i].data(), groups, 4 * channel);
          group_sums.finish(layer_kernels<T>(scan_.isa_), groups);
          scan_.kernels_.cells(pixels.data(), static_cast<int>(pixels.size()), hidden, channel,
                               std::min(kCellChannels, hidden - channel));
        }
        member.wait();
      }
    }

    void store() {
      out_.store();
      if (keeps_gates_) gates_.store();
    }

   private:
    const Scan& scan_;
    const NeighbourWeights<T>& weights_;
    const int images_, positions_, group_, most_;  // most_: groups in a step
    Pixels<E> sums_, out_, gates_;
    const bool keeps_gates_;
    Lines<T> h_, c_;
    Block rows_;
  };

  // initial: the gradients of h0 and c0, to be added to.
  void backward(const NeighbourWeights<T>& weights, int images, Pixels<E>& grad, Pixels<E>& gates, Pixels<E>& grad_sums,
                T* initial_gradients) const {
    const int positions = walk_.positions(), width = weights.channels;
    // The state of position p is read by those of positions p + first...p + first + taps - 1 at the next step.
    const int first = -walk_.first() - (r_.taps - 1), before = walk_.outside() ? 2 : 0;
    const int size = weights.scheme.outputs, most = images * (positions / size + 3);
    Lines<T> grad_products(images, 2 * size - first, positions, r_.taps + 2 * size, 4 * hidden_);
    Lines<T> grad_h(images, before, positions, size, width), grad_c(images, 0, positions, 0, hidden_);
    const std::vector<T> c0 = initial(r_.c0);
    Lines<T> c(images, 0, walk_.pixels(), 0, hidden_);
    const auto cell = [&](int n, int step, int p) -> const T* {
      return walk_.active(p, step) ? c.at(n, walk_.pixel(step, p)) : c0.data();
    };
    for (int step = 0; step < walk_.steps(); step++)
      for (int n = 0; n < images; n++)
        for (int p = walk_.begin(step); p < walk_.end(step); p++)
          kernels_.cell_of_gates(gates.at(n, walk_.y(step, p), walk_.x(step, p)), cell(n, step - 1, p),
                                 c.at(n, walk_.pixel(step, p)), hidden_);

    const Block memory(int64_t{most} * weights.depth * sizeof(T));
    const std::vector<T*> rows = rows_from(static_cast<T*>(memory.data()), most, weights.depth);
    std::vector<const T*> x;
    GroupSums<T> group_sums(weights, most, width);
    std::vector<CellBackward<E>> pixels;
    std::vector<T*> to;
    for (int step = walk_.steps() - 1; step >= 0; step--) {
      const int begin = walk_.begin(step), end = walk_.end(step);
      pixels.clear();
      for (int n = 0; n < images; n++) {
        for (int p = begin; p < end; p++) {
          const int py = walk_.y(step, p), px = walk_.x(step, p);
          pixels.push_back({gates.at(n, py, px), grad.at(n, py, px), cell(n, step, p), cell(n, step - 1, p),
                            grad_h.at(n, p), grad_c.at(n, p), grad_products.at(n, p), grad_sums.at(n, py, px)});
        }
        for (int p = walk_.begin(step + 1); p < walk_.end(step + 1) && step + 1 < walk_.steps(); p++)
          if (!walk_.active(p, step)) std::fill_n(grad_products.at(n, p), 4 * hidden_, T(0));
      }
      kernels_.cell_gradients(pixels.data(), static_cast<int>(pixels.size()), hidden_);

      // The states before it that it depends on, in groups.
      const int from = std::max(begin + walk_.first(), -walk_.outside());
      const int until = std::min(end + walk_.first() + r_.taps - 1, positions);
      x.clear(), to.clear();
      for (int n = 0; n < images; n++)
        for (int p = round_down(from, size); p < until; p += size) {
          x.push_back(grad_products.at(n, p + first));
          to.push_back(grad_h.at(n, p));
        }
      const int groups = static_cast<int>(x.size());
      group_sums.begin();
      for (size_t i = 0; i < weights.scheme.products.size(); i++) {
        weights.prepare(i, x.data(), 4 * hidden_, groups, rows.data());
        group_sums.multiply(i, rows.data(), groups, 0);
      }
      group_sums.finish(layer_kernels<T>(isa_), groups);
      for (int t = 0; t < groups; t++)
        for (int i = 0; i < size; i++) std::copy_n(group_sums.at(t, i), width, to[t] + i * width);

      for (int n = 0; n < images; n++)
        for (int p = from; p < until; p++) {
          if (walk_.active(p, step - 1)) continue;
          for (int j = 0; j < hidden_; j++) initial_gradients[j] += grad_h.at(n, p)[j];
          for (int j = 0; walk_.active(p, step) && j < hidden_; j++)
            initial_gradients[hidden_ + j] += grad_c.at(n, p)[j];
        }
    }
  }

  const StateToState r_;
  const Walk walk_;
  const int hidden_;
  const char* isa_;
  const LayerKernels<E>& kernels_;
};

}  // namespace

void recurrence(const StateToState& r, const FeatureMap& sums, const FeatureMap& h,
                const std::optional<FeatureMap>& gates, int threads) {
  with_element(sums.element, [&](auto e) {
    Scan<decltype(e)>(r, h.channels, h.height, h.width).forward(sums, h, gates.value_or(FeatureMap{}), threads);
  });
}

void recurrence_gradient(const StateToState& r, const FeatureMap& grad, const FeatureMap& gates,
                         const FeatureMap& grad_sums, void* grad_h0, void* grad_c0, int threads) {
  with_element(grad.element, [&](auto e) {
    using E = decltype(e);
    Scan<E>(r, grad.channels, grad.height, grad.width)
        .backward(grad, gates, grad_sums, static_cast<E*>(grad_h0), static_cast<E*>(grad_c0), threads);
  });
}

}  // namespace pcf::cpu

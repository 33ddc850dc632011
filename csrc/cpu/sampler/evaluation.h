// Evaluates instructions at the pixels of a span, in all images of a group; each thread its share of the channels.
#pragma once

#include <algorithm>
#include <iterator>

#include "cpu/sampler/image_values.h"
#include "cpu/sampler/team.h"
#include "cpu/sampler/workspace.h"

namespace pcf::cpu {

template <class T>
class Evaluation {
  using Instruction = PackedInstruction<T>;
  using Runs = std::vector<const PackedRun*>;

 public:
  // images: the numbers of those of the job that it works on.
  Evaluation(const Program& program, const PackedProgram<T>& packed, const Schedule& schedule, const Job& job,
             const Workspace<T>& workspace, int first_row, std::vector<int> images)
      : workspace(workspace), values(program, job), first_row(first_row), program_(program), p_(packed),
        schedule_(schedule), job_(job), images_(std::move(images)), n_(images_.size()) {}

  const Workspace<T>& workspace;
  const ImageValues values;
  const int first_row;  // that is drawn

  Span span(int t, int columns) const { return Span(program_, schedule_.lag, t, columns, {}, first_row); }

  // Computes an instruction's sum over its row runs, at the pixels of the chunk that begins at column step t: in the
  // phases of rows this gives its whole value, else the partial sum that its evaluation at a pixel begins with.
  void sum_row_runs(Member<T>& member, const Instruction& i, int t) {
    for (const Part& part : i.parts) {
      const Span& chunk = span(member, t + lead(i), schedule_.chunk, part.where);
      if (chunk.count() == 0) continue;
      tabulate_start(member.from, i, part, chunk);
      if (i.keeps_partial()) {
        tabulate_partial(member.out, i, chunk, t);
        sum(member, i, part.row_runs, chunk, member.out);
        copy(member, i, chunk.count() * n_);
        continue;
      }
      tabulate_value(member.out, i.out, chunk);
      finish(member, i, part, part.row_runs, chunk, member.row_sums);
    }
  }

  // part: that of the pixels of column step t; ahead: for how many steps from t on what is known ahead is summed;
  // next: what will be evaluated there, and begins with sums over row runs.
  void evaluate_at_pixel(Member<T>& member, const Instruction& i, const Part& part, int t, int ahead,
                         const Instruction* next) {
    if (ahead > 0 && !part.ahead_runs.empty()) {
      const Span& both = span(member, t + lead(i), ahead);
      tabulate_partial(member.from, i, both, t);
      sum(member, i, part.ahead_runs, both, member.from);
    }
    const Span& pixels = span(member, t + lead(i), 1);
    if (pixels.count() == 0 || (i.is_output && !job_.parameters && values.all_known(pixels, i.after))) return;
    if (!i.keeps_partial())
      tabulate_start(member.from, i, part, pixels);
    else if (member.prefetched_for == &i && member.next_step == t)
      std::swap(member.from, member.next), member.prefetched_for = nullptr;  // it was prefetched
    else
      tabulate_partial(member.from, i, pixels, t);
    if (next) prefetch_partial(member, *next, t);
    if (i.is_output)
      tabulate_rows(member.out, pixels, workspace.parameters(), i.padded);
    else
      tabulate_value(member.out, i.out, pixels);
    finish(member, i, part, part.pixel_runs, pixels, member.pixel_sums);
  }

  // Computes an instruction at `columns` pixels of a row from x on, of which all that it reads is there.
  void evaluate_in_row(Member<T>& member, const Instruction& i, int y, int x, int columns) {
    for (const Part& part : i.parts) {
      const Span pixels(program_, program_.width, y * program_.width + x, columns, part.where);
      if (pixels.count() == 0) continue;
      tabulate_start(member.from, i, part, pixels);
      tabulate_value(member.out, i.out, pixels);
      finish(member, i, part, part.runs, pixels, member.pixel_sums);
    }
  }

  // Gives an instruction that reads the image one of its values, which was drawn or known.
  void put_value(Member<T>& member, const Instruction& i, T value, int image, int channel, int y, int x) {
    if (channel < i.input.first || channel >= i.input.first + i.input.count) return;
    T* out = workspace.pixel(i.out, y, x) + image * workspace.image_stride(i.out);
    const int width = i.input.width, first = (channel - i.input.first) * width;
    if (i.table.empty())
      out[first] = value;
    else
      std::copy_n(i.table.data() + static_cast<int64_t>(value) * width, width, out + first);
    bind(member, i, i.parts[0], span(0, 0));  // the steps on levels have no operands
    member.out[0] = out;
    write(member, i, member.out, 1, first, first + width);
    workspace.keep(i.out, image, int64_t{y} * program_.width + x, out, first, first + width);
  }

 private:
  // Kept for the next call, since most instructions of a column step work on the same pixels.
  const Span& span(Member<T>& member, int t, int columns, const Lattice& on = {}) const {
    if (!member.span.is(t, columns, on)) member.span = Span(program_, schedule_.lag, t, columns, on, first_row);
    return member.span;
  }
  int lead(const Instruction& i) const { return schedule_.lead ? i.lead : 0; }
  std::pair<int, int> share(const Member<T>& member, const Instruction& i) const {
    return member.share(i.padded / p_.kernels.block);
  }

  // -- locations in memory

  // The m-th image of the span's pixel i is row i * images + m. first(y, x): where the pixel lies in image 0; each next
  // pixel of the span in its row lies `step` elements further on.
  template <class E, class First>
  void tabulate(Table<E>& table, const Span& span, int64_t image_stride, int64_t step, const First& first) const {
    E** next = table.data();
    span.each_row([&](int y, int begin, int end) {
      E* at = first(y, begin);
      for (int x = begin; x < end; x += span.step(), at += step)
        for (int m : images_) *next++ = at + m * image_stride;
    });
  }

  void tabulate_value(Table<T>& table, int value, const Span& span, int dy = 0, int dx = 0) const {
    tabulate(table, span, workspace.image_stride(value), workspace.distance(value, span.step()),
             [&](int y, int x) { return workspace.pixel(value, y + dy, x + dx); });
  }

  void tabulate_condition(Table<T>& table, int number, const Span& span) const {
    T* data = const_cast<T*>(static_cast<const T*>(job_.conditions[number]));
    const ConditionOperand& of = program_.conditions[number];
    const int64_t apart = image_stride(program_, of), n = of.channels;
    if (!of.varies_over_pixels) return tabulate(table, span, apart, 0, [&](int, int) { return data; });
    tabulate(table, span, apart, span.step() * n,
             [&](int y, int x) { return data + (int64_t{y} * program_.width + x) * n; });
  }

  // From column step t on, which is the chunk's first if the span has all of the chunk's columns.
  void tabulate_partial(Table<T>& table, const Instruction& i, const Span& span, int t) const {
    T* const begin = workspace.partials(&i - p_.instructions.data(), i, t);
    const auto elements = [&](int columns) { return int64_t{columns / i.grid.every_x} * i.padded; };
    tabulate(table, span, workspace.partial_stride(i), elements(span.step()),
             [&](int y, int x) { return begin + workspace.to_partial(i, y) + elements(x - span.start(y)); });
  }

  void tabulate_rows(Table<T>& table, const Span& span, T* data, int64_t stride) const {
    for (int r = 0; r < span.count() * n_; r++) table[r] = data + r * stride;
  }

  // -- what an instruction starts from, its sums and its steps

  // What an instruction's runs are added to or, if it has none, what its steps start from.
  void tabulate_start(Table<T>& table, const Instruction& i, const Part& part, const Span& span) const {
    switch (i.kind) {
      case InstructionKind::convolution: return tabulate_rows(table, span, const_cast<T*>(i.biases.data()), 0);
      case InstructionKind::pointwise:
        if (!part.has_value) return tabulate_rows(table, span, workspace.zeros(), 0);
        return tabulate_value(table, i.value, span, i.dy, i.dx);
      case InstructionKind::attention:
        if (i.attention.query >= 0) tabulate_value(table, i.attention.query, span);
        return;
      case InstructionKind::from_levels: break;  // it is computed as its values are drawn
    }
    __builtin_unreachable();
  }

  // Fetches the partial sums that the next instruction begins with: another core has written them, or this one long
  // ago.
  void prefetch_partial(Member<T>& member, const Instruction& next, int t) {
    const Span pixels = span(t + lead(next), 1);
    tabulate_partial(member.next, next, pixels, t);
    member.prefetched_for = &next, member.next_step = t;
    const auto [first, last] = share(member, next);
    for (int r = 0; r < pixels.count() * n_; r++)
      for (int c = first * p_.kernels.block; c < last * p_.kernels.block; c += 64 / sizeof(T))
        __builtin_prefetch(member.next[r] + c);
  }

  // member.out = steps(member.from + the runs); sums: a buffer.
  void finish(Member<T>& member, const Instruction& i, const Part& part, const Runs& runs, const Span& span,
              const Table<T>& sums) {
    bind(member, i, part, span);
    const auto [first, last] = share(member, i);
    const int begin = first * p_.kernels.block, end = std::min(last * p_.kernels.block, i.channels);
    if (i.kind == InstructionKind::attention) {
      attend(member, i, span, sums, begin, end);
      write(member, i, sums, span.count() * n_, begin, end);
    } else if (!i.ends_in_products || runs.empty() || runs.back()->is_filtered()) {
      sum(member, i, runs, span, sums);
      write(member, i, member.from, span.count() * n_, begin, end);
    } else {
      end_in_products(member, i, runs, span, sums);
    }
    if (!i.is_output && workspace.is_attended(i.out))
      each_site(span, [&](int row, int64_t pixel, int image) {
        workspace.keep(i.out, image, pixel, member.out[row], begin, end);
      });
  }

  // f(row, pixel, image) for each site of a span: its row in tables, and the pixel as y * width + x.
  template <class F>
  void each_site(const Span& span, const F& f) const {
    int row = 0;
    span.each_row([&](int y, int begin, int end) {
      for (int x = begin; x < end; x += span.step())
        for (int m : images_) f(row++, int64_t{y} * program_.width + x, m);
    });
  }

  // to = the channels begin...end-1 of an attention, whose queries are in member.from.
  void attend(Member<T>& member, const Instruction& i, const Span& span, const Table<T>& to, int begin, int end) {
    const Attention& a = i.attention;
    const bool meets = a.query >= 0;
    const int keys_channels = meets ? workspace.channels(a.query) : 0, depth = keys_channels / a.heads;
    const int of_value = values_channels(program_, a), width = of_value / a.heads;
    const int64_t pixels = values.pixels();
    // Of a condition, they lie as the workspace keeps a value's.
    const auto given = [&](int number, int image) {
      const T* const data = static_cast<const T*>(job_.conditions[number]);
      return data + image * image_stride(program_, program_.conditions[number]);
    };
    each_site(span, [&](int row, int64_t pixel, int image) {
      for (int head = 0; head < a.heads; head++) {
        const auto is_of_head = [&](int channel) { return channel / width == head; };
        // Where only some channels are kept, all of the head's are computed.
        int first = std::max(head * width, begin), last = std::min((head + 1) * width, end);
        if (!a.pick.empty()) {
          const bool is_needed = std::any_of(a.pick.begin() + begin, a.pick.begin() + end, is_of_head);
          first = head * width, last = is_needed ? first + width : first;
        }
        if (first >= last) continue;
        const int64_t table = (a.tables > 1 ? head : 0) * pixels + pixel;
        const int start = a.starts[table];
        T* const out = a.pick.empty() ? to[row] + first : member.of_head();
        const auto attend_to = [&]<class E>(void (*kernel)(const Query<T, E>&), const E* keys, const E* values) {
          kernel({.query = meets ? member.from[row] + head * depth : nullptr,
                  .keys = keys,
                  .values = values + first,
                  .key_stride = keys_channels,
                  .value_stride = of_value,
                  .depth = depth,
                  .width = last - first,
                  .ranges = a.ranges.data() + start,
                  .count = a.starts[table + 1] - start,
                  .scale = i.scale.empty() ? nullptr : i.scale.data() + table * a.keys,
                  .added = i.added.empty() ? nullptr : i.added.data() + table * a.keys,
                  .factors = i.factors.empty() ? nullptr : i.factors.data() + table * a.keys,
                  .epsilon = a.epsilon,
                  .fill = static_cast<T>(a.fill),
                  .vanishes = sizeof(T) == 8 ? T(746) : T(104),
                  .weights = member.weights.data(),
                  .out = out});
        };
        const auto of_pixels = [&]<class E>(void (*kernel)(const Query<T, E>&)) {
          const E* const keys = meets ? workspace.template keys<E>(a.key, image, head * depth) : nullptr;
          attend_to(kernel, keys, workspace.template attended<E>(a.value, image));
        };
        if (a.of_condition)
          attend_to(&p_.kernels.attend, given(a.key, image) + head * depth * kKeysTogether, given(a.value, image));
        else if (p_.narrow)
          of_pixels(p_.kernels.attend_bf16);
        else
          of_pixels(&p_.kernels.attend);
        for (int c = begin; c < end && !a.pick.empty(); c++)
          if (is_of_head(a.pick[c])) to[row][c] = out[a.pick[c] - first];
      }
    });
  }

  // The last product applies the steps.
  void end_in_products(Member<T>& member, const Instruction& i, const Runs& runs, const Span& span,
                       const Table<T>& sums) {
    Result<T> end{nullptr, member.out.data()};
    for (const auto& step : member.steps)
      if (step.kind == StepKind::relu)
        end.relu = true;
      else
        end.added = step.operand;
    if (is_rounded(i)) {
      tabulate_rounded(member.rounded_out, i.out, member.out, span.count() * n_);
      end.rounded = member.rounded_out.data();
    }
    sum(member, i, runs, span, sums, &end);
  }

  // member.from += the runs, in `to` for sites at which one of them may find more than zeros; the last run's result is
  // `end`, if there is one.
  void sum(Member<T>& member, const Instruction& i, const Runs& runs, const Span& span, const Table<T>& to,
           const Result<T>* end = nullptr) {
    const auto [first, last] = share(member, i);
    const int rows = span.count() * n_;
    if (i.filter) filter(member, i, runs, span, to);
    for (const PackedRun* run : runs) {
      if (run->is_filtered()) continue;
      const int source = run->source;
      const bool ends = end && run == runs.back();
      // The sites of the first rows may find nothing but the zeros above the image.
      const int above = ends ? 0 : span.above(run->dy) * n_;
      const int right = run->dx + (run->width - 1) * program_.storage[source].every_x;
      if (!ends && (above == rows || !span.meets(right))) continue;
      Result<T> result{member.from.data(), to.data()};
      if (ends) result = *end, result.from = member.from.data();
      result = result.behind(above);
      if (p_.rounded[source]) {
        tabulate(
            member.rounded, span, workspace.image_stride(source), workspace.distance(source, span.step()),
            [&](int y, int x) { return workspace.rounded(source, workspace.pixel(source, y + run->dy, x + run->dx)); });
        p_.kernels.matmul_rounded(member.rounded.data() + above, rows - above, run->packed, first, last, result);
      } else {
        tabulate_value(member.x, source, span, run->dy, run->dx);
        p_.kernels.matmul(member.x.data() + above, rows - above, run->packed, first, last, result);
      }
      if (!ends) std::copy(to.begin() + above, to.begin() + rows, member.from.begin() + above);
    }
  }

  // The same for the runs that are filtered, some pairs of columns after the other: what they read is taken to the
  // filter's points, and the products there, summed over all runs, back to columns.
  void filter(Member<T>& member, const Instruction& i, const Runs& runs, const Span& span, const Table<T>& to) {
    constexpr int kColumns = Filter<T>::kColumns;
    static_assert(Filter<T>::kMostTaps + kColumns - 1 <= kMostMixed);
    const auto [first, last] = share(member, i);
    const int begin = first * p_.kernels.block, channels = (last - first) * p_.kernels.block;
    const int points = i.filter->points, sites = span.count() * n_, pairs = sites / kColumns;
    Runs filtered;
    std::ranges::copy_if(runs, std::back_inserter(filtered), &PackedRun::is_filtered);
    if (channels == 0 || filtered.empty()) return;
    // The weights of the number-th product.
    const int products = points * static_cast<int>(filtered.size());
    const auto matrix = [&](int number) { return filtered[number / points]->at(number % points); };
    // Where a pair begins in tables of sites.
    const auto site = [&](int pair) { return pair / n_ * n_ * kColumns + pair % n_; };
    T* const columns = static_cast<T*>(member.at_points.data());
    T* const sums = columns + Member<T>::filtered(p_) / 2;
    for (int start = 0; start < pairs; start += kPairsTogether) {
      const int count = std::min(kPairsTogether, pairs - start);
      const auto each_point = [&](T* at, int64_t pitch) { return rows_from(at, int64_t{points} * count, pitch); };
      const Table<T> out = each_point(sums, i.padded);
      for (T* row : out) std::fill_n(row + begin, channels, T(0));
      for (size_t r = 0; r < filtered.size(); r++) {
        const PackedRun* const run = filtered[r];
        const int above = span.above(run->dy) * n_ / kColumns - start;  // so many pairs find zeros above the image
        const int begins = std::max(above, 0), depth = run->packed.depth;
        if (begins >= count) continue;
        tabulate_value(member.x, run->source, span, run->dy, run->dx);
        const Table<T> in = each_point(columns, depth);
        for (int k = begins; k < count; k++) {
          T* at[kMostMixed];
          for (int point = 0; point < points; point++) at[point] = in[point * count + k];
          p_.kernels.mix({member.x[site(start + k)], depth, points}, i.filter->of_columns.data(), points, nullptr, at,
                         depth);
        }
        for (int point = 0; point < points; point++) {
          const int row = point * count + begins, number = r * points + point;
          Packed weights = matrix(number);
          if (number + 1 < products) weights.after = matrix(number + 1).block(first);
          p_.kernels.matmul(in.data() + row, count - begins, weights, first, last,
                            {out.data() + row, out.data() + row});
        }
      }
      for (int k = 0; k < count; k++) {
        T *after[kColumns], *before[kColumns];
        for (int column = 0; column < kColumns; column++) {
          const int row = site(start + k) + column * n_;
          before[column] = member.from[row] + begin, after[column] = to[row] + begin;
        }
        p_.kernels.mix({out[k] + begin, int64_t{count} * i.padded, points}, i.filter->to_outputs.data(), kColumns,
                       before, after, channels);
      }
    }
    std::copy_n(to.begin(), sites, member.from.begin());
  }

  // member.out = member.from, where nothing was added to it.
  void copy(Member<T>& member, const Instruction& i, int rows) const {
    const auto [first, last] = share(member, i);
    for (int r = 0; r < rows; r++)
      if (member.from[r] != member.out[r])
        std::copy(member.from[r] + first * p_.kernels.block, member.from[r] + last * p_.kernels.block,
                  member.out[r] + first * p_.kernels.block);
  }

  // member.out = the member's steps (from) on the channels first...last-1.
  void write(Member<T>& member, const Instruction& i, const Table<T>& from, int rows, int first, int last) const {
    p_.kernels.epilogue(member.steps.data(), member.steps.size(), rows, first, last, from.data(), member.out.data());
    if (!is_rounded(i)) return;
    tabulate_rounded(member.rounded_out, i.out, member.out, rows);
    p_.kernels.round(member.out.data(), rows, first, last, member.rounded_out.data());
  }

  bool is_rounded(const Instruction& i) const { return !i.is_output && p_.rounded[i.out]; }

  // Where the first rows of a table of a value are kept in bf16.
  void tabulate_rounded(Table<Bfloat16>& rounded, int value, const Table<T>& table, int rows) const {
    for (int r = 0; r < rows; r++) rounded[r] = workspace.rounded(value, table[r]);
  }

  // Resolves the operands of an instruction's steps.
  void bind(Member<T>& member, const Instruction& i, const Part& part, const Span& span) const {
    member.steps.clear();
    for (size_t s = 0; s < i.steps.size(); s++) {
      const auto& step = i.steps[s];
      auto& table = member.operands[s];
      BoundStep<T>& bound = member.steps.emplace_back();
      bound = {.kind = step.kind,
               .alpha = static_cast<T>(step.alpha),
               .operand = table.data(),
               .scale = step.scales.data(),
               .shift = step.shifts.data()};
      switch (traits(step.kind).operand) {
        case Operand::value:
          if (part.has_operands[s])
            tabulate_value(table, step.operand, span, step.dy, step.dx);
          else
            tabulate_rows(table, span, workspace.zeros(), 0);
          bound.operand_channels = workspace.channels(step.operand);
          break;
        case Operand::condition: tabulate_condition(table, step.operand, span); break;
        case Operand::constants:
        case Operand::none: bound.operand = nullptr; break;
      }
    }
  }

  const Program& program_;
  const PackedProgram<T>& p_;
  const Schedule& schedule_;
  const Job& job_;
  const std::vector<int> images_;
  const int n_;
};

}  // namespace pcf::cpu

#include "cpu/sampler/schedule.h"

#include <cmath>

namespace pcf::cpu {
namespace {

constexpr double kCall = 2.4e-7;       // seconds for the tables and calls of an instruction
constexpr double kNotHidden = 0.25;    // of the time for another thread's elements; the rest passes while one computes
constexpr int kImagesForTwoTeams = 8;  // with so many, barriers take little time
constexpr int kMostSites = 64;         // of a column step: more take memory, but no less time
constexpr int kMostChunks = 1000;      // that an estimate looks at

// Sets the costs of schedules.
class Estimate {
 public:
  Estimate(const Program& program, const ProgramWork& work, const Machine& machine)
      : program_(program), work_(work), machine_(machine) {}

  // Sets the cost, and which team makes which sums.
  void operator()(Schedule& s) const {
    Work rows = work_.row_phase, pixels = work_.pixels, more;
    for (const Work& sum : work_.partial_sums) rows += sum;
    s.by_pixel_team.assign(work_.partial_sums.size(), false);
    const int row_threads = s.threads - s.pixel_threads, pixel_threads = s.two_teams() ? s.pixel_threads : s.threads;
    // A team goes through all of its weights again and again.
    const double cached = s.images * work_.cached;
    const Sharing row_team{row_threads, s.threads, rows.bytes + (s.two_teams() ? 0 : pixels.bytes), cached};
    const Sharing pixel_team{pixel_threads, s.threads, pixels.bytes, cached};
    if (s.two_teams()) {
      const double sites = double{1} * s.images * program_.width * program_.height / s.steps(program_);
      const double in_pixels = s.chunk * seconds(pixels, sites, pixel_team);
      for (size_t i = work_.partial_sums.size(); i-- > 0;) {
        Work fewer = rows, longer = more;
        fewer -= work_.partial_sums[i], longer += work_.partial_sums[i];
        const auto both = [&](const Work& r, const Work& p) {
          return std::max(seconds(r, s.chunk * sites, row_team), in_pixels + seconds(p, s.chunk * sites, pixel_team));
        };
        if (both(fewer, longer) < both(rows, more)) s.by_pixel_team[i] = true, rows = fewer, more = longer;
      }
    }
    // Chunk by chunk; a team for rows is one ahead. Of very many chunks, one stands for several.
    s.cost = 0;
    double before = 0;
    std::vector<double> at_pixels(program_.height + 1);  // of a column step, by how many pixels of an image it has
    for (int n = 1; n <= s.rows_in_flight; n++) at_pixels[n] = seconds(pixels, n * s.images, pixel_team);
    const int each = 1 + s.steps(program_) / (kMostChunks * s.chunk);
    for (int t = 0; t < s.steps(program_); t += each * s.chunk) {
      double of_pixels = 0;
      int in_chunk = 0;
      for (int step = t; step < t + s.chunk; step++) {
        const int n = Span(program_, s.lag, step, 1).count();
        of_pixels += at_pixels[n], in_chunk += n * s.images;
      }
      if (!in_chunk) continue;
      const double of_rows = seconds(rows, in_chunk, row_team);
      if (s.two_teams()) {
        s.cost += std::max(of_rows, before) + 2 * machine_.barrier * (s.threads - 1);
        before = of_pixels + seconds(more, in_chunk, pixel_team);
      } else {
        s.cost += of_rows + of_pixels;
      }
    }
    s.cost = (s.cost + before) * each * s.handicap();
  }

 private:
  // How many threads share some work.
  struct Sharing {
    int threads, of_group;
    double bytes;   // of the weights that they go through
    double cached;  // bytes of keys and values of all of the group's images
  };

  // Of a team's threads that do this at so many sites at once.
  double seconds(const Work& w, double sites, const Sharing& team) const {
    // Weights come while others are multiplied with, but never quite.
    const double loading = w.bytes / machine_.bandwidth(team.bytes / team.threads);
    const double products = std::hypot(w.products * machine_.multiply_add * sites, loading);
    // Elements come from afar if another thread has written them, or if those of all sites don't fit into L2.
    const double afar = std::max(kNotHidden * (team.of_group - 1) / team.of_group,
                                 std::clamp(sites * w.values / machine_.l2 - 0.5, 0.0, 1.0));
    const double attending = w.attended * sites / machine_.bandwidth(team.cached / team.of_group);
    return (products + attending + w.elements * machine_.multiply_add * sites) / team.threads + w.calls * kCall +
           afar * w.reads * machine_.element * sites + w.barriers * machine_.barrier * (team.threads - 1);
  }

  const Program& program_;
  const ProgramWork& work_;
  const Machine& machine_;
};

// Several rows in flight. pixel_threads: 0 for one team.
Schedule in_waves(Schedule s, const Program& program, const ProgramWork& work, int rows, int chunk, int pixel_threads) {
  const int ahead = (pixel_threads > 0 ? 2 : 1) * chunk, together = work.columns_together;
  s.chunk = chunk, s.pixel_threads = pixel_threads, s.lead = work.longest_lead;
  Wavefront wave = Wavefront::closest(program, ahead, rows);
  wave.lag = divided_up(wave.lag, together) * together;
  s.lag = wave.lag;
  // Counted for longer than a row is worked on, so that no memory is reused while a slower thread still reads it.
  s.rows_in_flight = wave.rows_in_flight(s.lead + ahead);
  return s;
}

// 1, 2, 4, ... and `most`, as many as matter; none if that is 0.
std::vector<int> sizes(int most) {
  std::vector<int> found;
  for (int size = 1; size < most; size *= 2) found.push_back(size);
  if (most > 0) found.push_back(most);
  return found;
}

Schedule row_by_row(Schedule s, const Program& program) {
  s.lag = s.chunk = program.width;
  return s;
}

}  // namespace

std::vector<Schedule> possible_schedules(const Program& program, const ProgramWork& work, const Machine& machine,
                                         int images, int threads, int in_group) {
  std::vector<Schedule> all;
  const auto add = [&](const Schedule& s) {
    all.push_back(row_by_row(s, program));
    if (program.lag == 0 || images == 0) return;
    const bool may_be_two = s.images < kImagesForTwoTeams && !work.attends_in_rows;
    std::vector<int> pixel_teams = may_be_two ? sizes(s.threads - 1) : std::vector<int>();
    pixel_teams.push_back(0);
    const int least = work.columns_together;
    for (int chunk = least; chunk < program.width; chunk += divided_up((chunk + 1) / 2, least) * least)
      for (int pixel_threads : pixel_teams)
        for (int rows = 2, lag = 0; rows == 2 || rows <= kMostSites / s.images; rows++) {
          const Schedule wave = in_waves(s, program, work, rows, chunk, pixel_threads);
          if (wave.lag != lag) all.push_back(wave);
          lag = wave.lag;
        }
  };
  for (int groups : sizes(std::clamp(images, 1, threads))) {
    Schedule s;
    s.groups = groups, s.images = divided_up(images, groups);
    if (images > 0 && divided_up(images, s.images) < groups) continue;  // a group would have no images
    for (int in_each : sizes(std::min({threads / groups, work.most_threads, in_group}))) s.threads = in_each, add(s);
  }
  std::ranges::for_each(all, [&](Schedule& s) { Estimate(program, work, machine)(s); });
  std::ranges::stable_sort(all, {}, &Schedule::cost);
  return all;
}

}  // namespace pcf::cpu

#include "cpu/sampler/schedule.h"

namespace pcf::cpu {
namespace {

// How many multiply-adds of one thread cost as much as loading a weight, as the tables and calls of an instruction, as
// a barrier, and as reading an element that another core has written; measured on two cores with AVX-512. The last is
// 30 to 160, by how near the other core is.
constexpr double kLoading = 1.2, kCall = 2e4, kBarrier = 1.2e4, kForeign = 60;
constexpr int kPixelsInFlight = 12, kImagesForRows = 8;

// The cost per pixel, if `threads` of a group's threads work on `together` pixels at once.
double cost_of(const Work& work, double together, int threads, int of_group) {
  const double barriers = threads > 1 ? work.barriers * kBarrier : 0;
  return (work.products * (1 + kLoading / together) + work.elements) / threads +
         (work.calls * kCall + barriers) / together + work.reads * kForeign * (of_group - 1) / of_group;
}

// Sets the cost, and which team makes which sums.
void estimate(Schedule& s, const Program& program, const ProgramWork& work) {
  const double pixels = double{1} * s.images * program.width * program.height;
  const double together = pixels / s.steps(program), in_chunk = together * s.chunk;
  const int row_threads = s.threads - s.pixel_threads, pixel_threads = s.two_teams() ? s.pixel_threads : s.threads;
  const auto in_rows = [&](const Work& w) { return cost_of(w, in_chunk, row_threads, s.threads); };
  double rows = in_rows(work.row_phase), pixel_cost = cost_of(work.pixels, together, pixel_threads, s.threads);
  for (const Work& sum : work.partial_sums) rows += in_rows(sum);
  s.by_pixel_team.assign(work.partial_sums.size(), false);
  s.cost = pixels * (rows + pixel_cost);
  if (!s.two_teams()) return;
  for (size_t i = work.partial_sums.size(); i-- > 0;) {
    const double fewer = rows - in_rows(work.partial_sums[i]);
    const double more = pixel_cost + cost_of(work.partial_sums[i], in_chunk, pixel_threads, s.threads);
    if (std::max(fewer, more) >= std::max(rows, pixel_cost)) continue;
    s.by_pixel_team[i] = true, rows = fewer, pixel_cost = more;
  }
  s.cost = pixels * (std::max(rows, pixel_cost) + 2 * kBarrier / in_chunk);
}

// Several rows in flight. pixel_threads: 0 for one team.
Schedule in_waves(Schedule s, const Program& program, const ProgramWork& work, int chunk, int pixel_threads) {
  const int rows = (kPixelsInFlight + s.images - 1) / s.images, ahead = (pixel_threads > 0 ? 2 : 1) * chunk;
  s.chunk = chunk, s.pixel_threads = pixel_threads, s.lead = work.longest_lead;
  const Wavefront wave = Wavefront::closest(program, ahead, rows);
  s.lag = wave.lag;
  // Counted for longer than a row is worked on, so that no memory is reused while a slower thread still reads it.
  s.rows_in_flight = wave.rows_in_flight(s.lead + ahead);
  estimate(s, program, work);
  return s;
}

Schedule row_by_row(Schedule s, const Program& program, const ProgramWork& work) {
  s.lag = s.chunk = program.width;
  estimate(s, program, work);
  return s;
}

}  // namespace

std::vector<Schedule> possible_schedules(const Program& program, const ProgramWork& work, int images, int threads,
                                         int in_group) {
  std::vector<Schedule> all;
  for (int groups = 1; groups <= std::clamp(images, 1, threads); groups++) {
    Schedule s;
    s.images = (images + groups - 1) / groups;
    s.groups = groups, s.threads = std::min({threads / groups, work.most_threads, in_group});
    if (images > 0 && (images + s.images - 1) / s.images < groups) continue;  // a group would have no images
    all.push_back(row_by_row(s, program, work));
    if (program.lag == 0 || images == 0 || s.images >= kImagesForRows) continue;
    for (int chunk = 1; chunk < program.width; chunk += (chunk + 1) / 2)
      for (int pixel_threads = 0; pixel_threads < s.threads; pixel_threads++)
        all.push_back(in_waves(s, program, work, chunk, pixel_threads));
  }
  std::ranges::stable_sort(all, {}, &Schedule::cost);
  return all;
}

}  // namespace pcf::cpu

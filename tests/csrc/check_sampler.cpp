// Runs the C++ sampler on small programs for the sanitizers, and checks that threads, batching and instruction sets
// do not change what comes out. Exits 1 at the first difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <tuple>

#include "cpu/sampler/choice.h"
#include "cpu/sampler/sampler.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"

namespace {

constexpr auto kFromLevels = pcf::InstructionKind::from_levels, kConvolution = pcf::InstructionKind::convolution;
constexpr int kImageChannels = 3, kHeight = 5, kWidth = 6, kLevels = 37;
constexpr int64_t kSubPixels = kImageChannels * kHeight * kWidth, kMap = kHeight * kWidth * 33;

void require(bool ok, const char* what) {
  if (ok) return;
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

template <class T>
struct Network {
  std::mt19937 random{7};
  std::vector<std::vector<T>> arrays;
  pcf::Program program;

  const T* array(int64_t size, double scale) {
    std::normal_distribution<double> normal(0, scale);
    arrays.emplace_back(size);
    for (T& x : arrays.back()) x = static_cast<T>(normal(random));
    return arrays.back().data();
  }

  // A convolution of 3 rows above and at the present pixel (mask A or B) over value `source`.
  pcf::Instruction convolution(int out, int source, int channels, int last_dx, std::vector<pcf::Step> steps) {
    const int in = program.storage[source].channels;
    const double scale = 0.5 / std::sqrt(5.0 * in);
    pcf::Instruction i{out, channels, kConvolution, pcf::Phase::pixel, {}, array(channels, 0.1)};
    i.steps = std::move(steps);
    i.row_runs = {{source, -1, -1, 3, array(3 * in * channels, scale)}};
    i.pixel_runs = {{source, 0, -1, last_dx + 2, array((last_dx + 2) * in * channels, scale)}};
    return i;
  }

  // Every phase and most steps: a value of rows above that is read to its right, one drawn, a skip, conditions, a
  // norm, a table of levels, odd numbers of channels. lag: 3 is the least with which rows can start behind the row
  // above; 0: row by row. draws: 1, or one for each image channel, which then sees those before it. scans: of rows
  // before their pixels and after them, too, which need lag 0, as grids do: values with fewer pixels.
  Network(int lag, int draws, bool scans = false, bool grids = false) {
    using pcf::StepKind;
    const pcf::Head head{pcf::HeadKind::categorical, kImageChannels, kLevels, 1, kLevels};
    program = {kImageChannels, kHeight, kWidth, head, {}, {}, {}, {{33, false}, {33, true}}};
    program.storage = {
        {kImageChannels, 2, 1, 1},    {7, 2, 1, 1}, {33, 2, 1, 1}, {9, 1, 1, 1}, {33, 2, 1, 1}, {33, 1, 0, 0},
        {kImageChannels * 4, 1, 1, 0}};
    const T* scale = array(kImageChannels, 0.02);
    const T* shift = array(kImageChannels, 0.1);
    pcf::Instruction input{0, kImageChannels, kFromLevels, pcf::Phase::drawn, {0, kImageChannels}};
    input.steps = {{StepKind::affine, 1, -1, scale, shift}};
    pcf::Instruction drawn{1, 7, kConvolution, pcf::Phase::drawn};
    drawn.steps = {{StepKind::elu}};
    drawn.pixel_runs = {{0, 0, 0, 1, array(kImageChannels * 7, 0.5)}};
    pcf::Instruction above{3, 9, kConvolution, pcf::Phase::row, {}, array(9, 0.1)};
    above.steps = {{StepKind::at_most, 0.5}, {StepKind::exp}, {StepKind::log}, {StepKind::tanh}};
    above.row_runs = {{1, -1, -1, 3, array(3 * 7 * 9, 0.3)}};
    pcf::Instruction first = convolution(2, 1, 33, -1, {{StepKind::relu}, {StepKind::add_condition, 0.5, 0}});
    first.row_runs.push_back({3, 0, -1, 3, array(3 * 9 * 33, 0.3)});
    first.pixel_runs.push_back({6, 0, -1, 1, array(kImageChannels * 4 * 33, 0.3)});
    pcf::Instruction second = convolution(4, 2, 33, 0,
                                          {{StepKind::add, 1, 2},
                                           {StepKind::silu},
                                           {StepKind::add_condition, 1, 1},
                                           {StepKind::maximum, 1, 2},
                                           {StepKind::softplus, 2}});
    second.row_runs.push_back({1, -1, 0, 1, array(7 * 33, 0.3)});
    pcf::Instruction norm{5, 33, pcf::InstructionKind::pointwise, pcf::Phase::pixel};
    norm.value = 4;
    norm.steps = {{StepKind::layer_norm, 1e-5, 4}, {StepKind::gelu}};
    pcf::Instruction embedded{6, kImageChannels * 4, kFromLevels, pcf::Phase::drawn};
    embedded.input = {0, kImageChannels, 4, array(kLevels * 4, 1), kLevels};
    embedded.steps = {{StepKind::power, 2}};
    program.lag = lag;
    input.after = embedded.after = drawn.after = draws;
    above.lead = 1;
    program.instructions = {input, embedded, drawn, above};
    if (scans) {
      add_scans(draws);
      first.row_runs.push_back({9, -1, -1, 3, array(3 * 5 * 33, 0.3)});
      first.row_runs.push_back({11, 0, -1, 3, array(3 * 5 * 33, 0.3)});
    }
    if (grids) {
      const int up = add_grids();
      first.pixel_runs.push_back({up, 0, 0, 1, array(5 * 33, 0.3)});
    }
    program.instructions.insert(program.instructions.end(), {first, second, norm});
    for (int draw = 0; draw < draws; draw++) program.instructions.push_back(logits(draw, kImageChannels / draws));
  }

  // Of finished rows two from the right, and one from the left that reads the first of them; before the row's pixels
  // one from the right, and one from the left that reads it.
  void add_scans(int after_draws) {
    for (const int channels : {11, 3, 5, 7, 5}) program.storage.push_back({channels, 2, 1, 1});
    const auto scan = [&](pcf::Phase phase, int value, int source, int toward) {
      const int channels = program.storage[value].channels, in = program.storage[source].channels;
      pcf::Instruction i{value, channels, kConvolution, phase, {}, array(channels, 0.1)};
      i.row_runs = {{source, 0, -1, 3, array(3 * in * channels, 0.3)},
                    {value, -1, 0, 1, array(channels * channels, 0.2)}};
      i.pixel_runs = {{value, 0, toward, 1, array(channels * channels, 0.2)}};
      i.steps = {{pcf::StepKind::add, 0.5, value, nullptr, nullptr, -1, 0}, {pcf::StepKind::tanh}};
      i.after = phase == pcf::Phase::finished ? after_draws : 0;
      i.scan = value, i.from_the_right = toward > 0;
      program.instructions.push_back(i);
    };
    scan(pcf::Phase::finished, 7, 1, 1), scan(pcf::Phase::finished, 8, 1, 1), scan(pcf::Phase::finished, 9, 7, -1);
    scan(pcf::Phase::row, 10, 3, 1), scan(pcf::Phase::row, 11, 10, -1);
  }

  // A value at every second pixel of every third row, one that reads it there, and one for each pixel, which finds it
  // at some of them. Returns the last.
  int add_grids() {
    const int down = program.storage.size(), inner = down + 1, up = down + 2;
    program.storage.insert(program.storage.end(), {{5, 2, 1, 1, 3, 2}, {5, 1, 0, 1, 3, 2}, {5, 1, 0, 0}});
    const auto convolution = [&](int value, std::vector<pcf::Run> row_runs, std::vector<pcf::Run> pixel_runs) {
      pcf::Instruction i{value, 5, kConvolution, pcf::Phase::pixel, {}, array(5, 0.1)};
      for (auto* runs : {&row_runs, &pixel_runs})
        for (auto& run : *runs) run.weight = array(run.width * program.storage[run.source].channels * 5, 0.3);
      i.row_runs = row_runs, i.pixel_runs = pixel_runs;
      program.instructions.push_back(i);
      return &program.instructions.back();
    };
    convolution(down, {{1, -1, -1, 3, nullptr}}, {{1, 0, -1, 1, nullptr}});
    convolution(inner, {{down, -3, -2, 3, nullptr}}, {{down, 0, -2, 2, nullptr}})->steps = {
        {pcf::StepKind::add, 0.5, down}};
    convolution(up, {{inner, -1, -1, 2, nullptr}, {inner, -1, 0, 1, nullptr}, {inner, -2, 0, 1, nullptr}},
                {{inner, 0, 0, 1, nullptr}, {inner, 0, -1, 1, nullptr}})
        ->steps = {{pcf::StepKind::add, 0.5, inner}, {pcf::StepKind::gelu}};
    return up;
  }

  // Of one draw. It reads the image channels drawn before it; the others' weights are zero.
  pcf::Instruction logits(int draw, int image_channels) {
    const int value = program.storage.size(), channels = image_channels * kLevels;
    program.storage.push_back({channels, 1, 0, 0});
    program.outputs.push_back(value);
    pcf::Instruction i{value, channels, kConvolution, pcf::Phase::pixel};
    i.after = draw;
    T* of_levels = const_cast<T*>(array(kImageChannels * channels, 0.5));
    std::fill(of_levels + draw * channels, of_levels + kImageChannels * channels, T(0));
    i.pixel_runs = {{5, 0, 0, 1, array(33 * channels, 0.5)}, {0, 0, 0, 1, of_levels}};
    return i;
  }
};

template <class T>
struct Result {
  std::vector<int32_t> levels;
  std::vector<T> logits;
  std::vector<double> log_probability;
};

// known: which of the levels given, or of levels 3, are known; the logits are asked for unless some are given.
template <class T>
Result<T> sample(const pcf::cpu::Sampler& sampler, int images, int first, const pcf::cpu::Schedule& schedule,
                 const std::vector<uint8_t>* known, const std::vector<int32_t>* given = nullptr) {
  std::mt19937 random(11);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<double> noise(16 * kSubPixels);
  for (double& u : noise) u = uniform(random);
  std::vector<T> condition(16 * 33), map(16 * kMap);
  for (T& c : condition) c = static_cast<T>(uniform(random));
  for (T& c : map) c = static_cast<T>(uniform(random));
  Result<T> result{std::vector<int32_t>(images * kSubPixels, 3), std::vector<T>(images * kSubPixels * kLevels),
                   std::vector<double>(images * kSubPixels)};
  if (given) result.levels = *given;
  pcf::Job job{images,
               result.levels.data(),
               known ? known->data() : nullptr,
               noise.data() + first * kSubPixels,
               {condition.data() + first * 33, map.data() + first * kMap},
               {0.9, 5, 0.8},
               given ? nullptr : result.logits.data(),
               result.log_probability.data()};
  int rows = 0;
  const int left = sampler.run(job, schedule, [&](int) { rows++; });
  const bool may_stay = given || schedule.fewer_at.empty();  // what is known is not stepped through
  if (!may_stay && schedule.threads > 1) require(left < schedule.threads, "threads leave when told");
  require(rows == kHeight, "on_row is called once a row");
  return result;
}

// Known levels, no images, and the ways in which a run ends early.
template <class T>
void check_ends(const pcf::cpu::Sampler& sampler, int threads) {
  const std::vector<uint8_t> known(14 * kSubPixels, 1);
  for (int32_t level : sample<T>(sampler, 14, 0, sampler.schedule(14, threads), &known).levels)
    require(level == 3, "known levels are kept");

  pcf::Job job{0, nullptr, nullptr, nullptr, {nullptr, nullptr}, {}};
  sampler.run(job, sampler.schedule(0, threads), [](int) {});
  constexpr int kImages = 3;
  std::vector<int32_t> levels(kImages * kSubPixels);
  const std::vector<double> noise(kImages * kSubPixels, 0.5);
  std::vector<T> condition(kImages * 33), map(kImages * kMap);
  job = {kImages, levels.data(), nullptr, noise.data(), {condition.data(), map.data()}, {}};
  for (const auto& schedule : sampler.schedules(kImages, threads)) {
    bool stopped = false, refused = false;
    try {
      sampler.run(job, schedule, [](int y) {
        if (y == 2) throw std::runtime_error("stop");
      });
    } catch (const std::runtime_error&) {
      stopped = true;
    }
    require(stopped, "an exception in on_row stops the run");

    condition[33] = map[(kImages - 1) * kMap + 3 * kWidth * 33] = std::nan("");
    try {
      sampler.run(job, schedule, [](int) {});
    } catch (const pcf::cpu::NonFiniteLogits& e) {
      refused = e.image == 1 && e.row == 0;
    }
    require(refused, "the first logits that are not finite are reported");
    condition[33] = map[(kImages - 1) * kMap + 3 * kWidth * 33] = 0;
  }
}

// Ways to cut the work: how close rows may follow each other, batches, the threads for each batch, and the column steps
// at which some of them leave. More threads than a machine has spend their time on waiting for each other.
struct Cuts {
  std::vector<int> lags;
  std::vector<std::pair<int, int>> sizes_and_threads;
  std::vector<std::vector<int>> fewer_at;  // where threads leave
};

template <class T>
void check(pcf::WeightFormat format, const char* isa, int draws, const Cuts& cuts) {
  constexpr bool float64 = sizeof(T) == 8;
  const Network<T> by_rows(0, draws);
  const auto whole_sampler = pcf::cpu::make_sampler(by_rows.program, float64, format, isa);
  const Result<T> whole = sample<T>(*whole_sampler, 14, 0, whole_sampler->schedule(14, 1), nullptr);
  for (int32_t level : whole.levels) require(level >= 0 && level < kLevels, "levels in range");
  for (int lag : cuts.lags) {
    const Network<T> network(lag, draws);
    const auto sampler = pcf::cpu::make_sampler(network.program, float64, format, isa);
    for (const auto& [size, threads] : cuts.sizes_and_threads)
      for (auto schedule : sampler->schedules(size, threads))
        for (const int sums_from : {0, 5, 99}) {  // from which instruction on the team for pixels makes sums
          if (sums_from < 99 && !schedule.two_teams()) continue;
          for (size_t i = 0; i < schedule.by_pixel_team.size(); i++) schedule.by_pixel_team[i] = int(i) >= sums_from;
          for (const auto& fewer_at : cuts.fewer_at) {
            if (schedule.threads == 1 && !fewer_at.empty()) continue;
            schedule.fewer_at = fewer_at;
            const Result<T> part = sample<T>(*sampler, size, 1, schedule, nullptr);
            require(std::equal(part.logits.begin(), part.logits.end(), whole.logits.begin() + kSubPixels * kLevels),
                    "the same in any batch, in any order, on any number of threads, even if some leave");
            require(std::equal(part.log_probability.begin(), part.log_probability.end(),
                               whole.log_probability.begin() + kSubPixels),
                    "and as probable");
            std::vector<uint8_t> known(size * kSubPixels);
            for (int i = 0; i < size * kSubPixels; i++)
              known[i] = i % (kHeight * kWidth) < (1 + size % (kHeight - 1)) * kWidth;
            require(sample<T>(*sampler, size, 1, schedule, &known, &part.levels).levels == part.levels,
                    "what is below known rows is drawn as if they had been");
          }
        }
    check_ends<T>(*sampler, 3);
  }
}

// Programs that are sampled row by row: with scans of whole rows, or with values on several grids.
void check_row_by_row(const char* isa, bool scans) {
  const Network<float> network(0, 1, scans, !scans);
  const auto sampler = pcf::cpu::make_sampler(network.program, false, pcf::WeightFormat::same, isa);
  const Result<float> whole = sample<float>(*sampler, 14, 0, sampler->schedule(14, 1), nullptr);
  const Result<float> without =
      sample<float>(*pcf::cpu::make_sampler(Network<float>(0, 1).program, false, pcf::WeightFormat::same, isa), 14, 0,
                    sampler->schedule(14, 1), nullptr);
  require(whole.logits != without.logits, "scans and grids matter");
  for (const auto& [size, threads] : std::vector<std::pair<int, int>>{{1, 2}, {2, 3}, {5, 4}}) {
    for (const auto& fewer_at : std::vector<std::vector<int>>{{}, {0}, {8, 20}}) {
      auto schedule = sampler->schedule(size, threads);
      schedule.fewer_at = fewer_at;
      const Result<float> part = sample<float>(*sampler, size, 1, schedule, nullptr);
      require(std::equal(part.logits.begin(), part.logits.end(), whole.logits.begin() + kSubPixels * kLevels),
              "the same row by row in any batch and on any number of threads, even if some leave");
    }
  }
}

// Mixtures of 11 logistics, of which the first colour is known in half of the pixels, or of which none is.
void check_mixture(const char* isa, bool per_colour) {
  Network<float> network(3, 1);
  const int components = 11, uniforms = per_colour ? 2 * kImageChannels : 1 + kImageChannels;
  const int parameters = components * (1 + 3 * kImageChannels);
  network.program.head = {pcf::HeadKind::logistic_mixture,
                          1,
                          parameters,
                          uniforms,
                          kLevels,
                          false,
                          components,
                          per_colour,
                          0.1 * per_colour};
  const auto sampler = pcf::cpu::make_sampler(network.program, false, pcf::WeightFormat::same, isa);
  constexpr int kImages = 5, kPixels = kHeight * kWidth;
  std::mt19937 random(11);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<double> noise(kImages * uniforms * kPixels);
  for (double& u : noise) u = uniform(random);
  std::vector<uint8_t> known(kImages * kSubPixels);
  for (int i = 0; i < kImages * kSubPixels; i++) known[i] = i % kSubPixels < kPixels && i % 2;
  const std::vector<float> condition(kImages * 33, 0.5f), map(kImages * kMap, 0.5f);
  const auto drawn = [&](const pcf::cpu::Schedule& schedule, bool some_known) {
    std::pair<std::vector<int32_t>, std::vector<double>> found{std::vector<int32_t>(kImages * kSubPixels, 7),
                                                               std::vector<double>(kImages * kSubPixels)};
    sampler->run({kImages,
                  found.first.data(),
                  some_known ? known.data() : nullptr,
                  noise.data(),
                  {condition.data(), map.data()},
                  {},
                  nullptr,
                  found.second.data()},
                 schedule, [](int) {});
    return found;
  };
  for (const bool some_known : {false, true}) {
    const auto whole = drawn(sampler->schedule(kImages, 1), some_known);
    for (int i = 0; i < kImages * kSubPixels; i++) {
      require(whole.first[i] >= 0 && whole.first[i] < kLevels, "a mixture's levels in range");
      require(std::isfinite(whole.second[i]), "a mixture's log-probabilities are finite");
      require(!some_known || !known[i] || (whole.first[i] == 7 && whole.second[i] == 0), "known colours are kept");
    }
    for (const auto& schedule : sampler->schedules(kImages, 3))
      require(drawn(schedule, some_known) == whole, "a mixture draws the same on any number of threads");
  }
}

// Programs that attend, over two blocks of keys: in the row phase to the two rows above, near the pixel, with tables
// for each head, keeping some channels, and to a condition; and, unless they go in a wavefront, to all pixels before.
// They also have a layer of so many weights that it is filtered.
template <class T>
struct Attending : Network<T> {
  static constexpr int kRows = 6, kColumns = 14, kPixels = kRows * kColumns, kHeads = 2, kDepth = 5, kValues = 19;
  static constexpr int kGivenKeys = 70, kKeyElements = 2 * pcf::cpu::kKeysTogether * kHeads * kDepth;
  static constexpr int kValueElements = kGivenKeys * kHeads * kValues, kWide = 256;

  explicit Attending(int lag) : Network<T>(0, 1) {
    static_assert(kPixels > pcf::cpu::kKeysTogether);
    pcf::Program& p = this->program;
    p = {1, kRows, kColumns, {pcf::HeadKind::categorical, 1, kLevels, 1, kLevels}, {8}, {}, {}, {}};
    p.lag = lag;
    p.storage = {{1, 2, 1, 1},
                 {8, 1, 0, 0},
                 {kDepth * kHeads, 1, 0, 0, 1, 1, true, false},
                 {kValues * kHeads, 1, 0, 0, 1, 1, false, true},
                 {kDepth * kHeads, 1, 0, 0},
                 {kValues * kHeads, 1, 0, 0},
                 {kDepth * kHeads, 1, 0, 0},
                 {kValues, 1, 0, 0},
                 {kLevels, 1, 0, 0},
                 {kValues * kHeads, 1, 0, 0},
                 {kWide, 3, 2, 2},
                 {kWide, 1, 0, 0}};
    p.conditions = {{kKeyElements, false}, {kValueElements, false}};
    pcf::Instruction input{0, 1, kFromLevels, pcf::Phase::drawn, {0, 1}};
    input.steps = {{pcf::StepKind::affine, 1, -1, this->array(1, 0.02), this->array(1, 0.1)}};
    input.after = 1;
    p.instructions = {input, reading(6, pcf::Phase::row, {{0, -1, -1, 3, nullptr}}, {})};
    attend(7, 6, pcf::Phase::row, [](int y, int x) { return y >= -2 && y < 0 && x >= -1 && x <= 1; }, 2, kHeads);
    attend_to_condition(9, 6);
    p.instructions.push_back(reading(1, pcf::Phase::pixel,
                                     {{0, -1, -1, 3, nullptr}, {7, 0, 0, 1, nullptr}, {9, 0, 0, 1, nullptr}},
                                     {{0, 0, -1, 1, nullptr}}));
    p.instructions.push_back(
        reading(11, pcf::Phase::pixel, {{10, -2, -2, 5, nullptr}, {10, -1, -2, 5, nullptr}}, {{1, 0, 0, 1, nullptr}}));
    p.instructions.back().steps = {{pcf::StepKind::tanh}};
    std::vector<pcf::Run> of_logits = {{1, 0, 0, 1, nullptr}, {11, 0, 0, 1, nullptr}};
    if (lag == 0) {
      p.instructions.push_back(reading(4, pcf::Phase::pixel, {}, {{1, 0, 0, 1, nullptr}}));
      attend(5, 4, pcf::Phase::pixel, [](int y, int x) { return y < 0 || (y == 0 && x < 0); }, kRows - 1, 1);
      of_logits.push_back({5, 0, 0, 1, nullptr});
    }
    p.instructions.push_back(reading(8, pcf::Phase::pixel, {}, of_logits));
    for (const int value : {2, 3, 10}) {
      p.instructions.push_back(reading(value, pcf::Phase::drawn, {}, {{0, 0, 0, 1, nullptr}, {1, 0, 0, 1, nullptr}}));
      p.instructions.back().after = 1;
    }
  }

  // A convolution whose runs get weights.
  pcf::Instruction reading(int out, pcf::Phase phase, std::vector<pcf::Run> row_runs,
                           std::vector<pcf::Run> pixel_runs) {
    const int channels = this->program.storage[out].channels;
    pcf::Instruction i{out, channels, kConvolution, phase, {}, this->array(channels, 0.1)};
    for (auto* runs : {&row_runs, &pixel_runs})
      for (auto& run : *runs)
        run.weight = this->array(run.width * this->program.storage[run.source].channels * channels, 0.5);
    i.row_runs = row_runs, i.pixel_runs = pixel_runs;
    return i;
  }

  // Attends to the pixels at the offsets (y, x) that are near.
  void attend(int out, int query, pcf::Phase phase, bool (*near)(int, int), int reach, int tables) {
    pcf::Instruction i = attending(out, query, phase, tables, kPixels, [=](int q, int k) {
      return near(k / kColumns - q / kColumns, k % kColumns - q % kColumns);
    });
    i.attention.key = 2, i.attention.value = 3, i.attention.reach = reach;
    const int64_t pairs = int64_t{tables} * kPixels * kPixels;
    if (tables > 1)
      for (auto* table : {&i.attention.scale, &i.attention.added, &i.attention.factors}) *table = this->array(pairs, 1);
    for (int c = 0; i.channels < kValues * kHeads && c < i.channels; c++) i.attention.pick.push_back(2 * c + 1);
    this->program.instructions.push_back(i);
  }

  // Attends to keys and values of the condition, of which each pixel is allowed two thirds.
  void attend_to_condition(int out, int query) {
    const auto allowed = [](int q, int k) { return (q + k) % 3 > 0; };
    pcf::Instruction i = attending(out, query, pcf::Phase::row, 1, kGivenKeys, allowed);
    i.attention.key = 0, i.attention.value = 1, i.attention.of_condition = true;
    this->program.instructions.push_back(i);
  }

  template <class F>
  pcf::Instruction attending(int out, int query, pcf::Phase phase, int tables, int keys, const F& allowed) {
    pcf::Instruction i{out, this->program.storage[out].channels, pcf::InstructionKind::attention, phase};
    pcf::Attention& a = i.attention;
    a.query = query, a.heads = kHeads, a.tables = tables, a.keys = keys, a.epsilon = 1e-3, a.fill = -HUGE_VAL;
    for (int table = 0; table < tables; table++)
      for (int q = 0; q < kPixels; q++) {
        a.starts.push_back(a.ranges.size());
        for (int k = 0, last = -2; k < keys; k++) {
          if (!allowed(q, k)) continue;
          if (k == last + 1)
            a.ranges.back().end++;
          else
            a.ranges.push_back({k, k + 1});
          last = k;
        }
      }
    a.starts.push_back(a.ranges.size());
    i.steps = {{pcf::StepKind::elu}};
    return i;
  }
};

// Any image is the same alone and in a batch, by every schedule, if threads leave, and where rows are given, which for
// some images are alike.
template <class T>
void check_attention(const char* isa, int lag, bool thorough) {
  using Images = Attending<T>;
  constexpr int kImages = 5, kGiven = 2 * Images::kColumns, kPixels = Images::kPixels;
  const Images network(lag);
  const auto sampler = pcf::cpu::make_sampler(network.program, sizeof(T) == 8, pcf::WeightFormat::same, isa);
  std::mt19937 random(11);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<double> noise(kImages * kPixels);
  for (double& u : noise) u = uniform(random);
  std::vector<T> keys(kImages * Images::kKeyElements), values(kImages * Images::kValueElements);
  for (auto* numbers : {&keys, &values})
    for (T& x : *numbers) x = static_cast<T>(uniform(random));
  const auto drawn = [&](int first, int images, const pcf::cpu::Schedule& schedule, const std::vector<int32_t>& given) {
    Result<T> found{given, std::vector<T>(images * kPixels * kLevels), std::vector<double>(images * kPixels)};
    found.levels.resize(images * kPixels);
    std::vector<uint8_t> known(images * kPixels);
    for (int i = 0; i < images * kPixels; i++) known[i] = !given.empty() && i % kPixels < kGiven;
    sampler->run({images,
                  found.levels.data(),
                  given.empty() ? nullptr : known.data(),
                  noise.data() + first * kPixels,
                  {keys.data() + first * Images::kKeyElements, values.data() + first * Images::kValueElements},
                  {},
                  given.empty() ? found.logits.data() : nullptr,
                  found.log_probability.data()},
                 schedule, [](int) {});
    return found;
  };
  const Result<T> whole = drawn(0, kImages, sampler->schedule(kImages, 1), {});
  std::vector<int32_t> given = whole.levels;
  std::copy_n(given.begin(), kGiven, given.begin() + kPixels);  // of the second image, too
  const std::vector<int32_t> completed = drawn(0, kImages, sampler->schedule(kImages, 1), given).levels;
  require(std::equal(completed.begin(), completed.begin() + kPixels, whole.levels.begin()), "what is given attends");
  for (const auto& [first, images, threads] : {std::tuple{1, 1, 1}, {1, 1, 2}, {0, kImages, 1}, {0, kImages, 3}}) {
    auto schedules = sampler->schedules(images, threads);
    if (!thorough) schedules.resize(1);
    for (auto& schedule : schedules)
      for (const auto& fewer_at : std::vector<std::vector<int>>{{}, {4, 20}}) {
        if (threads == 1 && !fewer_at.empty()) continue;
        schedule.fewer_at = fewer_at;
        const Result<T> part = drawn(first, images, schedule, {});
        require(std::equal(part.logits.begin(), part.logits.end(), whole.logits.begin() + first * kPixels * kLevels),
                "attention is the same in any batch, on any number of threads, even if some leave");
        const auto own = given.begin() + first * kPixels;
        const Result<T> rest = drawn(first, images, schedule, {own, own + images * kPixels});
        require(std::equal(rest.levels.begin(), rest.levels.end(), completed.begin() + first * kPixels),
                "below rows that are given, too");
      }
  }
}

// Schedules whose estimates are close are tried, and the fastest is kept; others are not.
void check_choice() {
  const auto of_cost = [](int chunk, double cost) {
    pcf::cpu::Schedule s;
    s.chunk = chunk, s.cost = cost;
    return s;
  };
  pcf::cpu::Choice choice({of_cost(0, 0.01), of_cost(1, 0.011), of_cost(2, 0.012), of_cost(3, 0.05)});
  const double seconds[] = {0.012, 0.011, 0.010};
  std::vector<int> tried;
  while (choice.is_open()) {
    tried.push_back(choice.schedule().chunk);
    choice.took(seconds[tried.back()]);
  }
  require(tried == std::vector<int>{0, 0, 1, 1, 2, 2}, "each is tried twice");
  require(choice.schedule().chunk == 2, "the fastest is kept");
  pcf::cpu::Choice costly({of_cost(0, 1), of_cost(1, 1.01), of_cost(2, 1.02)});
  costly.took(1), costly.took(1), costly.took(2);
  require(!costly.is_open() && costly.schedule().chunk == 0, "nothing is tried when that has taken too long");
  const pcf::cpu::Choice long_runs({of_cost(0, 2), of_cost(1, 2.2)});
  require(!long_runs.is_open(), "what is estimated to take too long is not tried");
  const pcf::cpu::Choice small({of_cost(0, 1e-5), of_cost(1, 1.1e-5)});
  require(!small.is_open() && small.schedule().chunk == 0, "what takes microseconds is not tried");
}

}  // namespace

// Every cut once, of the one kind of numbers and with the instruction set that most people have; the other kinds
// differ in their products and draws, for which few cuts do.
int main() {
  check_choice();
  const Cuts all{{0, 3, 5, 6},
                 {{1, 1}, {1, 2}, {1, 4}, {2, 16}, {3, 2}, {5, 2}, {13, 3}},  // 16: more than have channels to own
                 {{}, {0}, {2, 9, 10}}};
  const Cuts few{{0, 3}, {{2, 2}, {13, 2}}, {{}, {4}}};
  const std::vector<std::string> isas = pcf::cpu::available_isas();
  for (const std::string& isa : isas) {
    for (int draws : {1, kImageChannels}) {
      const bool thorough = isa == isas.back() && draws == 1;
      check<float>(pcf::WeightFormat::same, isa.c_str(), draws, thorough ? all : few);
      check<float>(pcf::WeightFormat::bf16, isa.c_str(), draws, few);
      check<double>(pcf::WeightFormat::same, isa.c_str(), draws, few);
    }
    check_row_by_row(isa.c_str(), true), check_row_by_row(isa.c_str(), false);
    for (const bool per_colour : {false, true}) check_mixture(isa.c_str(), per_colour);
    for (const int lag : {0, 3}) {
      check_attention<float>(isa.c_str(), lag, isa == isas.back());
      check_attention<double>(isa.c_str(), lag, false);
    }
    std::printf("%s: ok\n", isa.c_str());
  }
}

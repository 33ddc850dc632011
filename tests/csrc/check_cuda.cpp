// Runs the CUDA kernels on the host for the sanitizers, and checks that neither the schedule nor the batch changes a
// bit, and that sums in pieces agree. Exits 1 at the first difference.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>

#include "cuda/plan.h"
#include "emulation/kernels.h"
#include "emulation/scheduler.h"

// Fibers on stacks of their own make this check slow, and find nothing in kernels.
extern "C" const char* __asan_default_options() { return "detect_stack_use_after_return=0"; }

namespace {

constexpr int kChannels = 2, kHeight = 2, kWidth = 5, kLevels = 19, kImages = 27, kLabel = 21;
constexpr int64_t kSubPixels = kChannels * kHeight * kWidth;

void require(bool ok, const char* what) {
  if (ok) return;
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

// Every phase: a value drawn, one of the rows above that is read to its right, a skip, a condition, odd channels. With
// scans: of the row above one from the right, so that rows are sampled one at a time.
struct Network {
  std::mt19937 random{7};
  std::vector<std::vector<float>> arrays;
  pcf::Program program;

  const float* array(int64_t size, double scale) {
    std::normal_distribution<float> normal(0, static_cast<float>(scale));
    arrays.emplace_back(size);
    for (float& x : arrays.back()) x = normal(random);
    return arrays.back().data();
  }

  explicit Network(bool scans) {
    using pcf::InstructionKind, pcf::Phase, pcf::StepKind;
    constexpr auto kConvolution = InstructionKind::convolution;
    program = {kChannels, kHeight, kWidth, {pcf::HeadKind::categorical, kChannels, kLevels, 1, kLevels},
               {5},       {},      {},     {{kLabel, false}}};
    program.storage = {{kChannels, 2, 1, 1}, {13, 2, 1, 1},     {kLabel, 2, 1, 1},
                       {9, 1, 1, 1},         {kLabel, 2, 1, 1}, {kChannels * kLevels, 1, 0, 0}};
    pcf::Instruction input{0, kChannels, InstructionKind::from_levels, Phase::drawn, {0, kChannels}};
    input.steps = {{StepKind::affine, 1, -1, array(kChannels, 0.1), array(kChannels, 0.1)}};
    pcf::Instruction drawn{1, 13, kConvolution, Phase::drawn};
    input.after = drawn.after = 1;
    drawn.pixel_runs = {{0, 0, 0, 1, array(kChannels * 13, 0.5)}};
    drawn.steps = {{StepKind::elu}};
    pcf::Instruction above{3, 9, kConvolution, Phase::row, {}, array(9, 0.1)};
    if (!scans) above.lead = 1, program.lag = 3;
    above.row_runs = {{1, -1, -1, 3, array(3 * 13 * 9, 0.3)}};
    above.steps = {{StepKind::tanh}};
    pcf::Instruction first{2, kLabel, kConvolution, Phase::pixel, {}, array(kLabel, 0.1)};
    first.row_runs = {{1, -1, -1, 3, array(3 * 13 * kLabel, 0.2)}, {3, 0, -1, 3, array(3 * 9 * kLabel, 0.2)}};
    first.pixel_runs = {{1, 0, -1, 1, array(13 * kLabel, 0.3)}};
    first.steps = {{StepKind::relu}, {StepKind::add_condition, 0.5, 0}};
    pcf::Instruction second{4, kLabel, kConvolution, Phase::pixel, {}, array(kLabel, 0.1)};
    second.row_runs = {{2, -1, -1, 3, array(3 * kLabel * kLabel, 0.1)}};
    second.pixel_runs = {{2, 0, -1, 2, array(2 * kLabel * kLabel, 0.2)}};
    second.steps = {{StepKind::add, 1, 2}, {StepKind::silu}};
    pcf::Instruction logits{5, kChannels * kLevels, kConvolution, Phase::pixel};
    logits.pixel_runs = {{4, 0, 0, 1, array(kLabel * kChannels * kLevels, 0.5)}};
    program.instructions = {input, drawn, above, first, second, logits};
    if (!scans) return;
    program.storage.push_back({11, 2, 1, 1});
    pcf::Instruction scan{6, 11, kConvolution, Phase::finished, {}, array(11, 0.1)};
    scan.after = 1, scan.scan = 6, scan.from_the_right = true;
    scan.row_runs = {{2, 0, 0, 1, array(kLabel * 11, 0.2)}, {6, -1, 0, 1, array(11 * 11, 0.2)}};
    scan.pixel_runs = {{6, 0, 1, 1, array(11 * 11, 0.2)}};
    scan.steps = {{StepKind::tanh}};
    program.instructions[3].row_runs.push_back({6, -1, -1, 3, array(3 * 11 * kLabel, 0.2)});
    program.instructions.push_back(scan);
  }
};

std::string folder;  // of the kernels' libraries: the program's own

struct Planned {
  pcf::Math math;
  pcf::cuda::Plan plan;

  int records() const {
    int all = 0;
    for (const pcf::cuda::SweepFacts& sweep : plan.sweeps) all += sweep.records;
    return all;
  }
};

Planned planned(const pcf::Program& program, pcf::Math math, int images, int blocks, int kilobytes) {
  return {math, pcf::cuda::make_plan(program, math, images, blocks, kilobytes << 10)};
}

std::string library(const Planned& planned) {
  const auto& [math, plan] = planned;
  const char* const names[] = {"fp32", "bf16", "fp16"};
  return folder + "/libwalk_" + names[static_cast<int>(math)] + "_" + std::to_string(plan.layout.tiles) + "x" +
         std::to_string(plan.layout.cluster) + ".so";
}

// top_k, 0: the plain draw.
std::vector<float> sample(const Planned& planned, int images, int first, unsigned seed, int top_k = 0) {
  const pcf::cuda::Plan& plan = planned.plan;
  emulation::set_seed(seed);
  std::mt19937 random(11);
  std::uniform_real_distribution<float> uniform(0, 1);
  std::vector<double> noise(kImages * kSubPixels);
  for (double& u : noise) u = uniform(random);
  std::vector<float> condition(kImages * kLabel), logits(images * kSubPixels * kLevels, NAN);
  for (float& c : condition) c = uniform(random);
  std::vector<int32_t> levels(images * kSubPixels);
  std::vector<char> workspace(plan.workspace_bytes(images) + 127);
  std::vector<char> constants(plan.constants.size() + 15);
  const auto aligned = [](char* p, uintptr_t to) {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + to - 1) / to * to);
  };
  std::memcpy(aligned(constants.data(), 16), plan.constants.data(), plan.constants.size());
  unsigned long long error = ~0ull;
  const pcf::cuda::KernelParams params{plan.layout,
                                       aligned(constants.data(), 16),
                                       aligned(workspace.data(), 128),
                                       images,
                                       levels.data(),
                                       nullptr,
                                       noise.data() + first * kSubPixels,
                                       condition.data() + first * kLabel,
                                       {{0.9, top_k, top_k ? 0.8 : 1.0}, static_cast<float>(1 / 0.9)},
                                       logits.data(),
                                       nullptr,
                                       &error};
  emulation::launch(library(planned), params, plan.blocks(images), plan.shared_bytes);
  require(error == ~0ull, "the logits are finite");
  return logits;
}

// The less shared memory, the more pieces a layer is summed in.
Planned with_least_memory(const pcf::Program& program, pcf::Math math, int images) {
  for (int kilobytes = 1;; kilobytes++) try {
      return planned(program, math, images, 1, kilobytes);
    } catch (const std::invalid_argument&) {
      require(kilobytes < 200, "the network fits");
    }
}

void check(pcf::Math math, double tolerance, bool scans) {
  const Network network(scans);
  std::vector<float> first;
  // Two rows of an image at a time fill all tiles, in 16 bits 7 of 8.
  const int most = scans ? 8 : std::min(kImages, pcf::kTileSites * pcf::cuda::most_tiles(math) / 2);
  for (const int images : {1, 4, most}) {
    const auto least = with_least_memory(network.program, math, images);
    const auto most = planned(network.program, math, images, 1, 227);
    require(least.plan.shared_bytes < most.plan.shared_bytes, "less memory");
    // A sweep has some records at least: its pieces may be among them.
    require(scans || least.records() > most.records(), "several pieces");
    for (const auto& plan : {least, most}) {
      const std::vector<float> whole = sample(plan, kImages, 0, 1);
      if (first.empty()) first = whole;
      double apart = 0;
      for (size_t i = 0; i < whole.size(); i++) apart = std::fmax(apart, std::fabs(whole[i] - first[i]));
      require(apart <= tolerance, "the plans agree");
      require(sample(plan, kImages, 0, 2) == whole, "the same on every schedule");
      const std::vector<float> part = sample(plan, 3, 7, 4);
      require(std::equal(part.begin(), part.end(), whole.begin() + 7 * kSubPixels * kLevels), "the same in any batch");
    }
    sample(least, 3, 7, 4, 5);
  }
  const auto apart = planned(network.program, math, 1, 1, 227);
  const std::vector<float> alone = sample(apart, 3, 7, 1);
  for (int blocks = 2; blocks <= pcf::kMostBlocks; blocks *= 2) {
    const int images = blocks == 4 ? 2 : 1;  // of a cluster
    const auto together = planned(network.program, math, images, blocks, 227);
    require(sample(together, 3, 7, 3) == alone, "the same in clusters");
  }
}

// In a process of its own, as the thread sanitizer keeps memory for every thread that there was.
bool is_ok(pcf::Math math, double tolerance, bool scans) {
  const pid_t child = fork();
  require(child >= 0, "there can be another process");
  if (child == 0) try {
      check(math, tolerance, scans);
      std::exit(0);
    } catch (const std::runtime_error& error) {
      require(false, error.what());
    }
  int status = 0;
  return waitpid(child, &status, 0) == child && status == 0;
}

}  // namespace

int main(int, char** arguments) {
  using pcf::Math;
  folder = std::filesystem::path(arguments[0]).parent_path().string();
  for (const bool scans : {false, true})
    for (const Math math : {Math::fp32, Math::bf16, Math::fp16})
      if (!is_ok(math, math == Math::fp32 ? 1e-4 : 0.2, scans)) return 1;
  std::printf("ok\n");
}

// Which of the schedules that may be the fastest is the fastest, found while they run.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "cpu/sampler/schedule.h"
#include "cpu/threads/over_forks.h"

namespace pcf::cpu {

// Estimates can't tell schedules apart that are almost as fast, so the first runs try a few of them, each twice
// running, since after another one, memory is new. From then on, it is the fastest.
class Choice {
 public:
  static constexpr int kCandidates = 4, kRuns = 2;

  // all: the cheapest first. The cheapest of each kind is tried, then the next cheapest.
  explicit Choice(std::vector<Schedule> all) {
    const double most =
        all[0].cost < kWorthTrying ? 0 : std::min(kClose * all[0].cost, all[0].cost + kMostSpent / kRuns);
    std::set<std::array<int, 4>> kinds;
    std::ranges::stable_partition(all, [&](const Schedule& s) {
      return kinds.insert({s.groups, s.threads, s.pixel_threads, s.is_wave()}).second;
    });
    for (const Schedule& s : all)
      if (candidates_.empty() || (s.cost < most && std::ssize(candidates_) < kCandidates)) candidates_.push_back({s});
  }

  const Schedule& schedule() const { return candidates_[present()].schedule; }
  // Whether the schedule is being tried.
  bool is_open() const { return candidates_.size() > 1 && spent_ < kMostSpent && candidates_[present()].runs < kRuns; }

  // It took so many seconds.
  void took(double seconds) {
    if (!is_open()) return;
    Candidate& tried = candidates_[present()];
    tried.seconds = std::min(tried.seconds, seconds * tried.schedule.handicap()), tried.runs++;
    std::ranges::stable_sort(candidates_, {}, &Candidate::seconds);
    spent_ += std::max(0.0, seconds - candidates_[0].seconds);
  }

 private:
  struct Candidate {
    Schedule schedule;
    double seconds = std::numeric_limits<double>::infinity();  // the least
    int runs = 0;
  };
  static constexpr double kClose = 1.25, kWorthTrying = 1e-3, kMostSpent = 0.15;  // the latter two in seconds

  // The fastest of all, unless another has a turn.
  size_t present() const {
    if (spent_ >= kMostSpent) return 0;
    const auto runs = [](const Candidate& c) { return c.runs < kRuns ? c.runs : -1; };
    const auto next = std::ranges::max_element(candidates_, {}, runs);
    return runs(*next) < 0 ? 0 : next - candidates_.begin();
  }

  std::vector<Candidate> candidates_;  // the fastest first
  double spent_ = 0;                   // on others than the fastest
};

// The runs of all samplers of this process. Each is timed only if it had the machine to itself.
struct Runs {
  std::mutex mutex;  // also of all choices
  int running = 0;
  int64_t begun = 0;

  void in_child() { running = 0; }  // the other threads are gone
};

// The choices for each number of images, of threads and of those in a group.
class Choices {
 public:
  using Key = std::array<int, 3>;

  class Turn {
   public:
    // possible(): all schedules, the cheapest first.
    template <class Possible>
    Turn(Choices& choices, Key key, const Possible& possible) {
      std::unique_lock lock(runs_.mutex);
      auto& by_key = choices.by_key_;
      auto found = by_key.find(key);
      if (found == by_key.end()) {
        lock.unlock();  // that takes milliseconds
        Choice made(possible());
        lock.lock();
        found = by_key.emplace(key, std::move(made)).first;
      }
      choice_ = &found->second;
      schedule = choice_->schedule(), is_open = choice_->is_open();
      alone_ = runs_.running++ == 0, number_ = ++runs_.begun;
    }
    ~Turn() {
      const std::lock_guard lock(runs_.mutex);
      runs_.running = std::max(runs_.running - 1, 0);  // it may go on in a child
    }
    void took(double seconds) {
      const std::lock_guard lock(runs_.mutex);
      if (alone_ && runs_.begun == number_) choice_->took(seconds);
    }

    Schedule schedule;
    bool is_open;

   private:
    Runs& runs_ = over_forks<Runs>();
    Choice* choice_;
    bool alone_;
    int64_t number_;
  };

 private:
  std::map<Key, Choice> by_key_;
};

}  // namespace pcf::cpu

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

namespace pcf::cpu {

// Estimates can't tell schedules apart that are almost as fast, so the first runs try a few of them, each twice
// running, since after another one, memory is new. From then on, it is the fastest.
class Choice {
 public:
  static constexpr int kCandidates = 4, kRuns = 2;

  // all: the cheapest first. The cheapest of each kind is tried, then the next cheapest.
  explicit Choice(std::vector<Schedule> all) {
    const double most = all[0].cost < kWorthTrying ? 0 : kClose * all[0].cost;
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

// The choices for each number of images, of threads and of those in a group. Runs may overlap; only what has the
// machine to itself is timed.
class Choices {
 public:
  using Key = std::array<int, 3>;

  class Turn {
   public:
    // possible(): all schedules, the cheapest first.
    template <class Possible>
    Turn(Choices& choices, Key key, const Possible& possible) : choices_(choices), lock_(choices.mutex_) {
      auto found = choices_.by_key_.find(key);
      if (found == choices_.by_key_.end()) {
        lock_.unlock();  // that takes milliseconds, and a child of a fork in between could never lock it
        Choice made(possible());
        lock_.lock();
        found = choices_.by_key_.emplace(key, std::move(made)).first;
      }
      choice_ = &found->second;
      schedule = choice_->schedule(), is_open = choice_->is_open();
      alone_ = choices_.running_++ == 0, number_ = ++choices_.turns_;
      lock_.unlock();
    }
    ~Turn() {
      const std::lock_guard lock(choices_.mutex_);
      choices_.running_--;
    }
    void took(double seconds) {
      const std::lock_guard lock(choices_.mutex_);
      if (alone_ && choices_.turns_ == number_) choice_->took(seconds);
    }

    Schedule schedule;
    bool is_open;

   private:
    Choices& choices_;
    std::unique_lock<std::mutex> lock_;
    Choice* choice_;
    bool alone_;
    int64_t number_;
  };

 private:
  std::mutex mutex_;
  std::map<Key, Choice> by_key_;
  int running_ = 0;
  int64_t turns_ = 0;
};

}  // namespace pcf::cpu

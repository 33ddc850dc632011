// What is one in a process and has a mutex.
#pragma once

#include <pthread.h>

namespace pcf::cpu {

// The T of this process, made at the first call and never destroyed. Its T::mutex is held while the process forks: if
// another thread had it then, nobody would release it in the child. T::in_child(), if there is one, is called there.
template <class T>
T& over_forks() {
  static T& the_only = *[] {
    const auto in_child = [] {
      if constexpr (requires(T& t) { t.in_child(); }) over_forks<T>().in_child();
      over_forks<T>().mutex.unlock();
    };
    pthread_atfork([] { over_forks<T>().mutex.lock(); }, [] { over_forks<T>().mutex.unlock(); }, in_child);
    return new T;
  }();
  return the_only;
}

}  // namespace pcf::cpu

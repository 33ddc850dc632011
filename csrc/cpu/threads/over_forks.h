// What is one in a process and has a mutex.
#pragma once

#include <pthread.h>

namespace pcf::cpu {

// The T of this process, made at the first call and never destroyed. Its T::mutex is held while the process forks: if
// another thread had it then, nobody would release it in the child.
template <class T>
T& over_forks() {
  static T& the_only = *[] {
    const auto release = [] { over_forks<T>().mutex.unlock(); };
    pthread_atfork([] { over_forks<T>().mutex.lock(); }, release, release);
    return new T;
  }();
  return the_only;
}

}  // namespace pcf::cpu

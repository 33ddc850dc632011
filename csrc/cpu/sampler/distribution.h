// One distribution of one pixel of one image: what is drawn from, and where its noise and its values lie.
#pragma once

#include "program.h"

namespace pcf::cpu {

// The value at element `at` of Job::values, as the network reads it.
template <class T>
T value_at(const Head& head, const void* values, int64_t at) {
  if (head.real) return static_cast<T>(static_cast<const float*>(values)[at]);
  return static_cast<T>(static_cast<const int32_t*>(values)[at]);
}

// Its parameters, the element of Job::noise at which its noise begins, that of Job::values, known and log_probability
// at which its `count` values begin, and how far apart its elements lie in each. It is drawn unless all its values are
// known.
template <class T>
struct Distribution {
  const T* parameters;
  int64_t noise, values;
  int count;
  int64_t stride;
};

}  // namespace pcf::cpu

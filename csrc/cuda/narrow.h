// Narrow number formats as bits, on the host. Rounds to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

namespace pcf::cuda {

inline uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);  // rounding could carry a NaN into infinity
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t to_fp16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536 or more: infinity
  if (size < 0x38800000)  // below 2^-14: denormal, a multiple of 2^-24, which the sum's last mantissa bit stands for
    return static_cast<uint16_t>(
        sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - std::bit_cast<uint32_t>(0.5f)));
  return static_cast<uint16_t>(sign | (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13);
}

}  // namespace pcf::cuda

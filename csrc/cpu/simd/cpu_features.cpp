#include "cpu/simd/cpu_features.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "isas.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pcf::cpu {
namespace {

struct Isa {
  const char* name;
  bool available, by_default = true;
};

#if defined(__x86_64__)
// Read here, since __builtin_cpu_supports asks the compiler's runtime library, and Zig's knows of no processor.
struct Processor {
  unsigned leaf1_c = 0, leaf7_b = 0, leaf7_d = 0, leaf7_1_a = 0;
  unsigned saved = 0;  // the registers that the operating system saves: XCR0

  Processor() {
    unsigned unused, most, b, c, d, high;
    if (!__get_cpuid(1, &unused, &b, &leaf1_c, &d)) return;
    if (__get_cpuid_count(7, 0, &most, &leaf7_b, &c, &leaf7_d) && most >= 1)
      __get_cpuid_count(7, 1, &leaf7_1_a, &b, &c, &d);
    if (leaf1_c & bit_OSXSAVE) __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  }
};
const Processor& processor() {
  static const Processor found;
  return found;
}

bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }
constexpr unsigned kYmm = 0x6, kZmm = 0xe6;  // in XCR0, each with those that it contains

bool has_avx2() {
  const Processor& p = processor();
  return has(p.saved, kYmm) && has(p.leaf1_c, bit_AVX | bit_FMA) && has(p.leaf7_b, bit_AVX2);
}
bool has_avx512() {
  const Processor& p = processor();
  constexpr unsigned kBits = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  return has_avx2() && has(p.saved, kZmm) && has(p.leaf7_b, kBits);
}
bool has_bf16() { return has_avx512() && has(processor().leaf7_1_a, 1 << 5); }
// Processors with tiles multiply bf16 in vectors, too, but measured at half the speed of float32.
bool has_tiles() { return has(processor().leaf7_d, 1 << 24 | 1 << 22); }

// Asks Linux for the tile registers, which a process may use from then on if it grants them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

Isa sse2() { return {"sse2", true}; }
Isa avx2() { return {"avx2", has_avx2()}; }
Isa avx512() { return {"avx512", has_avx512()}; }
Isa avx512_bf16() { return {"avx512_bf16", has_bf16(), !has_tiles()}; }
Isa amx_bf16() { return {"amx_bf16", has_bf16() && has_tiles() && may_use_tiles()}; }
#else
Isa portable() { return {"portable", true}; }
#endif

// Those that were built, lowest first.
const std::vector<Isa>& isas() {
#define PCF_ISA(isa, _) isa(),
  static const std::vector<Isa> all = {PCF_EACH_ISA(PCF_ISA, _)};
  return all;
}

const char* find(const std::string& name, const char* asked_by) {
  std::string known;
  for (const Isa& isa : isas()) {
    if (!isa.available) continue;
    if (isa.name == name) return isa.name;
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw std::invalid_argument(std::string(asked_by) + ": instruction set '" + name +
                              "' is unknown, not built or not in this processor; available: " + known);
}

const char* default_isa() {
  const char* named = std::getenv("PIXELCNN_FAST_ISA");
  if (named && *named) return find(named, "PIXELCNN_FAST_ISA");
  const char* best = nullptr;
  for (const Isa& isa : isas())
    if (isa.available && isa.by_default) best = isa.name;
  return best;
}

std::atomic<const char*> forced{nullptr};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas())
    if (isa.available) names.emplace_back(isa.name);
  return names;
}

const char* chosen_isa() {
  if (const char* name = forced.load()) return name;
  static const char* const name = default_isa();
  return name;
}

void force_isa(const std::string& name) { forced = name.empty() ? nullptr : find(name, "force_isa"); }

}  // namespace pcf::cpu

// Which instruction set the kernels use. Names: sse2, avx2, avx512, avx512_bf16, amx_bf16; portable where there is no
// x86-64. The last two differ from avx512 in the products of bf16 only.
#pragma once

#include <string>
#include <vector>

namespace pcf::cpu {

// The instruction sets that were built and that this processor has, lowest first.
std::vector<std::string> available_isas();

// The instruction set in use: the one forced, else the one PIXELCNN_FAST_ISA names, else the best available.
// Throws std::invalid_argument if PIXELCNN_FAST_ISA names one that is not available. The string is static.
const char* chosen_isa();

// Uses this instruction set from now on; "" goes back to the default. Existing samplers keep theirs.
// Throws std::invalid_argument, naming those available, for any other name.
void force_isa(const std::string& name);

}  // namespace pcf::cpu

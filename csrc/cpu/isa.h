// Instruction sets: which exist, which this machine has, which one is in use.
//
// The best set that the processor and the operating system support is in use from the start; phlite.ops selects another
// one where PHLITE_ISA names it. Kernels look up `active_isa()` through their own table; nothing else branches on it.
#pragma once
#include <string>
#include <vector>

namespace phlite {

// Ordered from the definition to the fastest: a later one is preferred when the machine has it.
enum class Isa { scalar = 0, avx2 = 1, avxvnni = 2, avx512vnni = 3 };
constexpr int kIsaCount = 4;

const char* isa_name(Isa isa);

// True when both the processor (CPUID) and the operating system (XCR0) support every instruction of the set.
bool isa_supported(Isa isa);

// Which encoding of the 256-bit dot products `avxvnni` uses: VEX if the processor has it, else EVEX (AVX512VL).
bool has_vex_vnni();

// Whether this is an AMD processor of family 1Ah (Zen 5) or later: 512-bit paths twice as wide as those of Zen 4, so
// that what is free differs. For choices that change no bit.
bool is_zen5_or_later();

// The supported sets, best first; `scalar` is always the last.
std::vector<Isa> supported_isas();

// The set in use. Kernels of an area without a file for it fall to the next lower one in their table.
Isa active_isa();

// Selects a set by name, for PHLITE_ISA and for tests that walk all of them.
// Throws std::invalid_argument naming the possible ones when unknown or unsupported.
void select_isa(const std::string& name);

}  // namespace phlite

#include "cpu/isa.h"

#include <cstdint>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#define PHLITE_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace phlite {
namespace {

struct Features {
  bool avx2 = false, vex_vnni = false, evex_vnni = false, avx512vnni = false;
};

#ifdef PHLITE_X86
struct Regs {
  uint32_t a, b, c, d;
};

Regs cpuid(uint32_t leaf, uint32_t sub) {
#if defined(_MSC_VER)
  int r[4];
  __cpuidex(r, static_cast<int>(leaf), static_cast<int>(sub));
  return {uint32_t(r[0]), uint32_t(r[1]), uint32_t(r[2]), uint32_t(r[3])};
#else
  Regs r{};
  __cpuid_count(leaf, sub, r.a, r.b, r.c, r.d);
  return r;
#endif
}

uint64_t xcr0() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (uint64_t(hi) << 32) | lo;
#endif
}

Features detect() {
  Features f;
  if (cpuid(0, 0).a < 7) return f;
  const Regs l1 = cpuid(1, 0), l7 = cpuid(7, 0), l71 = cpuid(7, 1);
  const bool osxsave = l1.c >> 27 & 1;
  if (!osxsave) return f;
  const uint64_t x = xcr0();
  const bool ymm = (x & 0x6) == 0x6, zmm = (x & 0xe6) == 0xe6;
  const bool fma = l1.c >> 12 & 1, f16c = l1.c >> 29 & 1, avx = l1.c >> 28 & 1;
  f.avx2 = ymm && avx && fma && f16c && (l7.b >> 5 & 1);
  const bool f512 = l7.b >> 16 & 1, dq = l7.b >> 17 & 1, bw = l7.b >> 30 & 1, vl = l7.b >> 31 & 1;
  const bool vbmi = l7.c >> 1 & 1, vnni512 = l7.c >> 11 & 1;
  f.avx512vnni = f.avx2 && zmm && f512 && dq && bw && vl && vbmi && vnni512;
  // The 256-bit dot products exist in two encodings.
  f.vex_vnni = f.avx2 && (l71.a >> 4 & 1);
  f.evex_vnni = f.avx512vnni;
  return f;
}
#else
Features detect() { return {}; }
#endif

const Features& features() {
  static const Features f = detect();
  return f;
}

Isa best() {
  if (features().avx512vnni) return Isa::avx512vnni;
  if (features().vex_vnni) return Isa::avxvnni;
  if (features().avx2) return Isa::avx2;
  return Isa::scalar;
}

Isa& current() {
  static Isa isa = best();
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  static const char* const names[kIsaCount] = {"scalar", "avx2", "avxvnni", "avx512vnni"};
  return names[static_cast<int>(isa)];
}

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return features().avx2;
    case Isa::avxvnni:
      return features().vex_vnni || features().evex_vnni;
    case Isa::avx512vnni:
      return features().avx512vnni;
  }
  return false;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> out;
  for (int i = kIsaCount - 1; i >= 0; --i)
    if (isa_supported(static_cast<Isa>(i))) out.push_back(static_cast<Isa>(i));
  return out;
}

bool is_zen5_or_later() {
#ifdef PHLITE_X86
  static const bool yes = [] {
    const Regs vendor = cpuid(0, 0);
    const bool amd = vendor.b == 0x68747541 && vendor.d == 0x69746e65 && vendor.c == 0x444d4163;  // "AuthenticAMD"
    const uint32_t signature = cpuid(1, 0).a, family = signature >> 8 & 15;
    return amd && family == 15 && family + (signature >> 20 & 255) >= 0x1a;
  }();
  return yes;
#else
  return false;
#endif
}

bool has_vex_vnni() { return features().vex_vnni; }

Isa active_isa() { return current(); }

void select_isa(const std::string& name) {
  std::string possible;
  for (Isa isa : supported_isas()) {
    if (name == isa_name(isa)) {
      current() = isa;
      return;
    }
    possible += possible.empty() ? "" : ", ";
    possible += isa_name(isa);
  }
  throw std::invalid_argument("instruction set '" + name +
                              "' is unknown or not supported by this machine; possible: " + possible);
}

}  // namespace phlite

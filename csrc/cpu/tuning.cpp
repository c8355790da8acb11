#include "cpu/tuning.h"

#include <stdexcept>

#include "cpu/isa.h"

namespace phlite {
namespace {

constexpr Tuning kZen4 = {"zen4", false, false, false, false}, kZen5 = {"zen5", true, true, true, true},
                 kOther = {"other", true, false, false, false};

const Tuning*& current() {
  static const Tuning* tuning = amd_family() == 0 ? &kOther : amd_family() < 0x1A ? &kZen4 : &kZen5;
  return tuning;
}

}  // namespace

const Tuning& tuning() { return *current(); }

std::vector<std::string> tuning_names() { return {kZen4.name, kZen5.name, kOther.name}; }

void select_tuning(const std::string& name) {
  for (const Tuning* t : {&kZen4, &kZen5, &kOther}) {
    if (name != t->name) continue;
    current() = t;
    return;
  }
  throw std::invalid_argument("tuning '" + name + "' is unknown; possible: zen4, zen5, other");
}

}  // namespace phlite

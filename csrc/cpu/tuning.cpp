#include "cpu/tuning.h"

#include <stdexcept>

#include "cpu/isa.h"

namespace phlite {
namespace {

constexpr Tuning kTunings[] = {
    {"zen3", false, FetchAhead::lines, false, false},
    {"zen4", false, FetchAhead::none, false, false},
    {"zen5", true, FetchAhead::slices, true, true},
    {"other", true, FetchAhead::none, false, false},
};
constexpr const Tuning &kZen3 = kTunings[0], &kZen4 = kTunings[1], &kZen5 = kTunings[2], &kOther = kTunings[3];

const Tuning& of_this_processor() {
  if (amd_family() == 0) return kOther;
  if (amd_family() >= 0x1A) return kZen5;
  return isa_supported(Isa::avx512vnni) ? kZen4 : kZen3;
}

const Tuning*& current() {
  static const Tuning* tuning = &of_this_processor();
  return tuning;
}

}  // namespace

const Tuning& tuning() { return *current(); }

std::vector<std::string> tuning_names() {
  std::vector<std::string> names;
  for (const Tuning& t : kTunings) names.push_back(t.name);
  return names;
}

void select_tuning(const std::string& name) {
  std::string possible;
  for (const Tuning& t : kTunings) {
    if (name == t.name) {
      current() = &t;
      return;
    }
    possible += possible.empty() ? "" : ", ";
    possible += t.name;
  }
  throw std::invalid_argument("tuning '" + name + "' is unknown; possible: " + possible);
}

}  // namespace phlite

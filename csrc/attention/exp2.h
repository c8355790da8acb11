// 2^x for x <= 0, the exponential of the softmax: one definition, written out per instruction set.
//
// n = x to the nearest integer (ties to even), f = x - n, 2^f = 1 + f (c1 + f (c2 + ... + f c6)) by fused multiply-adds
// from c6 down, times 2^n. Below -125.5 and for NaN the result is 0, so no subnormal appears. exp2(0) is exactly 1.
// Largest error 0.95 ulp over [-0.5, 0.5], by evaluation at two million points; coefficients by a minimax fit of the
// relative error with the constant term held at 1.
#pragma once
#include <limits>

namespace phlite::attention {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();  // a masked score
constexpr float kExp2Floor = -125.5f;
constexpr float kExp2C1 = 0x1.62e430p-1f;
constexpr float kExp2C2 = 0x1.ebfbdcp-3f;
constexpr float kExp2C3 = 0x1.c6aee8p-5f;
constexpr float kExp2C4 = 0x1.3b2d4cp-7f;
constexpr float kExp2C5 = 0x1.5f3e52p-10f;
constexpr float kExp2C6 = 0x1.41fbbcp-13f;

}  // namespace phlite::attention

#include "nn/float_rounding.h"

#include <cmath>
#include <functional>

#include <mlx/mlx.h>

namespace mlxlm::nn {
namespace {

mx::array constant(double value) {
  return mx::array(static_cast<float>(value));
}

mx::array through_e4m3(const mx::array& x) {
  return mx::from_fp8(mx::to_fp8(x), mx::float32);
}

mx::array next_power_of_two(const mx::array& x) {
  return mx::power(constant(2), mx::ceil(mx::log2(x)));
}

mx::array clipped(const mx::array& x, double most) {
  return mx::clip(x, constant(-most), constant(most));
}

// To the nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6; halfway to the even one.
mx::array through_e2m1(const mx::array& x) {
  auto size = mx::abs(x);
  auto step = mx::where(
      mx::less(size, constant(2)),
      constant(0.5),
      mx::where(mx::less(size, constant(4)), constant(1), constant(2)));
  return mx::multiply(mx::round(mx::divide(x, step)), step);
}

// f(x / scale) * scale, where f's numbers reach up to `most` and `scale` is
// made of the largest number of a block over that.
mx::array in_blocks(const mx::array& x,
                    int block,
                    double most,
                    double smallest,
                    const std::function<mx::array(const mx::array&)>& to_scale,
                    const std::function<mx::array(const mx::array&)>& f) {
  if (x.shape(-1) % block != 0) return x;
  auto blocks = mx::unflatten(mx::astype(x, mx::float32), -1, {-1, block});
  auto largest = mx::maximum(mx::max(mx::abs(blocks), -1, /*keepdims=*/true),
                             constant(smallest));
  auto scale = to_scale(mx::divide(largest, constant(most)));
  auto y = mx::multiply(f(clipped(mx::divide(blocks, scale), most)), scale);
  return mx::astype(mx::flatten(y, -2, -1), x.dtype());
}

}  // namespace

mx::array rounded_to_fp8(const mx::array& x) {
  return in_blocks(x, 32, 448, 1e-4, next_power_of_two, through_e4m3);
}

mx::array rounded_to_fp4(const mx::array& x, int block, Fp4Scale scale) {
  const bool e4m3 = scale == Fp4Scale::e4m3;
  return in_blocks(x,
                   block,
                   6,
                   6 * std::ldexp(1.0, e4m3 ? -9 : -126),
                   e4m3 ? through_e4m3 : next_power_of_two,
                   through_e2m1);
}

}  // namespace mlxlm::nn

// Recurrences, token by token.
#include <vector>

#include <mlx/mlx.h>

#include "kernels/reference.h"

namespace mlxlm::kernels::reference {
namespace {

// x [B, T, ...]: [:, t].
mx::array token_of(const mx::array& x, int t) {
  mx::Shape start(x.ndim(), 0);
  mx::Shape stop = x.shape();
  start[1] = t;
  stop[1] = t + 1;
  return mx::squeeze(mx::slice(x, std::move(start), std::move(stop)), 1);
}

mx::array tokens_between(const mx::array& x, int begin, int end) {
  mx::Shape start(x.ndim(), 0);
  mx::Shape stop = x.shape();
  start[1] = begin;
  stop[1] = end;
  return mx::slice(x, std::move(start), std::move(stop));
}

mx::array in_float32(const mx::array& x) { return mx::astype(x, mx::float32); }

// x [..., Hk, Dk] -> [..., H, Dk].
mx::array repeat_heads(const mx::array& x, int num_heads) {
  return mx::repeat(in_float32(x), num_heads / x.shape(-2), -2);
}

// Matrix times vector: s [B, H, Dv, Dk], x [B, H, Dk] -> [B, H, Dv].
mx::array apply_to(const mx::array& s, const mx::array& x) {
  return mx::sum(mx::multiply(s, mx::expand_dims(x, -2)), -1);
}

// x [B, H, Dv], y [B, H, Dk] -> [B, H, Dv, Dk].
mx::array outer_product(const mx::array& x, const mx::array& y) {
  return mx::multiply(mx::expand_dims(x, -1), mx::expand_dims(y, -2));
}

Scanned joined(std::vector<mx::array> ys, mx::array state, mx::Dtype dtype) {
  return {mx::astype(mx::stack(ys, 1), dtype), std::move(state)};
}

}  // namespace

Scanned causal_conv(const mx::array& x,
                    const CausalConv& conv,
                    const mx::array& state) {
  const int num_taps = conv.num_taps();
  const int num_tokens = x.shape(1);
  auto all = mx::concatenate({mx::astype(state, x.dtype()), x}, 1);
  auto y = mx::zeros_like(x);
  for (int k = 0; k < num_taps; ++k) {
    auto tap = mx::astype(mx::take(conv.weight, k, 1), x.dtype());
    y = mx::add(y, mx::multiply(tokens_between(all, k, k + num_tokens), tap));
  }
  if (conv.bias) y = mx::add(y, mx::astype(*conv.bias, x.dtype()));
  if (conv.silu) y = activate(y, Activation::silu);
  // Of its own, not a view that keeps the chunk.
  return {y,
          mx::contiguous(
              tokens_between(all, num_tokens, num_tokens + num_taps - 1))};
}

Scanned matrix_scan(const MatrixScan& scan, const mx::array& state) {
  const int num_heads = scan.v.shape(2);
  auto q = repeat_heads(scan.q, num_heads);
  auto k = repeat_heads(scan.k, num_heads);
  auto v = in_float32(scan.v);
  auto decay = in_float32(scan.decay);
  if (decay.ndim() == 3) decay = mx::expand_dims(decay, -1);
  auto erase = scan.erase;
  auto write = scan.write;
  if (scan.beta) {
    auto beta = mx::expand_dims(in_float32(*scan.beta), -1);
    erase = mx::multiply(decay, k);
    write = mx::negative(mx::multiply(beta, k));
    v = mx::multiply(v, beta);
  }
  auto s = in_float32(state);
  std::vector<mx::array> ys;
  for (int t = 0; t < scan.v.shape(1); ++t) {
    auto next =
        mx::add(mx::multiply(s, mx::expand_dims(token_of(decay, t), -2)),
                outer_product(token_of(v, t), token_of(k, t)));
    if (erase) {
      next = mx::add(next,
                     outer_product(apply_to(s, in_float32(token_of(*erase, t))),
                                   in_float32(token_of(*write, t))));
    }
    s = next;
    ys.push_back(apply_to(s, token_of(q, t)));
  }
  return joined(std::move(ys), s, scan.v.dtype());
}

Scanned selective_scan(const SelectiveScan& scan, const mx::array& state) {
  auto a = in_float32(scan.a);
  auto s = in_float32(state);
  std::vector<mx::array> ys;
  for (int t = 0; t < scan.x.shape(1); ++t) {
    auto x = in_float32(token_of(scan.x, t));
    auto step = in_float32(token_of(scan.step, t));
    auto b = in_float32(token_of(scan.b, t));
    auto c = in_float32(token_of(scan.c, t));
    s = mx::add(
        mx::multiply(s, mx::exp(mx::multiply(mx::expand_dims(step, -1), a))),
        outer_product(mx::multiply(step, x), b));
    ys.push_back(mx::add(mx::sum(mx::multiply(s, mx::expand_dims(c, 1)), -1),
                         mx::multiply(in_float32(scan.skip), x)));
  }
  return joined(std::move(ys), s, scan.x.dtype());
}

Scanned decayed_sum(const mx::array& x,
                    const mx::array& decay,
                    const mx::array& state) {
  auto s = in_float32(state);
  std::vector<mx::array> ys;
  for (int t = 0; t < x.shape(1); ++t) {
    s = mx::add(mx::multiply(s, in_float32(token_of(decay, t))),
                in_float32(token_of(x, t)));
    ys.push_back(s);
  }
  return joined(std::move(ys), s, x.dtype());
}

}  // namespace mlxlm::kernels::reference

// Recurrences over a chunk of tokens: the part of the seam that carries a
// state of fixed size from token to token. Every operation takes the state
// before the chunk and gives the one after it; states are float32.
//
// B: rows, T: tokens, C: channels, H: heads, Dk: key size, Dv: value size.
#pragma once

#include <optional>

#include <mlx/array.h>

namespace mlxlm::kernels {

namespace mx = mlx::core;

struct Scanned {
  mx::array y;
  mx::array state;
};

// A causal convolution of each channel over the newest K tokens, and SiLU.
struct CausalConv {
  mx::array weight;               // [C, K]
  std::optional<mx::array> bias;  // [C]
  bool silu = false;

  int num_taps() const { return weight.shape(1); }
};

// Linear attention whose state is a matrix S [Dv, Dk] per head. At each token
//   S = S diag(decay) + (S erase) write^T + v k^T,  then  y = S q.
// With `beta` it is the gated delta rule: erase = decay * k, write = -beta * k,
// and v times beta. Heads of q and k are shared by H / Hk heads of v.
// Methods: gated delta networks (arXiv 2412.06464), Mamba-2 (2405.21060),
// RWKV-7 (2503.14456), lightning attention (2405.17381).
struct MatrixScan {
  mx::array q, k;                         // [B, T, Hk, Dk]
  mx::array v;                            // [B, T, H, Dv]
  mx::array decay;                        // [B, T, H] or [B, T, H, Dk]
  std::optional<mx::array> beta;          // [B, T, H]
  std::optional<mx::array> erase, write;  // [B, T, H, Dk]; both or none
};

// Mamba's scan, with a state S [N] per channel. At each token
//   S = S * exp(step * a) + step * x * b,  then  y = S . c + skip * x.
// Method: arXiv 2312.00752.
struct SelectiveScan {
  mx::array x, step;  // [B, T, C]
  mx::array a;        // [C, N]
  mx::array b, c;     // [B, T, N]
  mx::array skip;     // [C]
};

}  // namespace mlxlm::kernels

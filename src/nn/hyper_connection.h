// Hyper-connections: several streams in place of one residual stream, from
// which each part of a layer reads a mixture, and which it mixes anew. Method:
// arXiv:2512.24880, mlx_lm/models/deepseek_v41.py.
#pragma once

#include "kernels/seam.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

// Streams are [B, L, S, D], all of this float32.
struct HyperMix {
  mx::array read;   // [B, L, S], by which the part after the next one reads
  mx::array write;  // [B, L, S], of the part's answer
  mx::array carry;  // [B, L, S, S], from each stream to each; rows and columns
                    // sum up to 1
};

struct HyperConnection {
  int num_streams = 0;
  int num_rounds = 0;  // of bringing the sums to 1
  float eps = 0;
  float norm_eps = 0;
  mx::array weight;  // [(2 + S) * S, S * D]
  mx::array scale;   // [3]: of what to read, to write, to carry
  mx::array base;    // [(2 + S) * S]

  HyperMix operator()(const mx::array& streams) const;
};

// What the model's last norm reads.
struct HyperHead {
  float eps = 0;
  float norm_eps = 0;
  mx::array weight;  // [S, S * D]
  mx::array scale;   // [1]
  mx::array base;    // [S]

  // [B, L, S, D] -> [B, L, D]
  mx::array operator()(const mx::array& streams) const;
};

// What a part reads: [B, L, D].
mx::array collapse(const mx::array& streams, const mx::array& read);

// The streams after a part's answer y [B, L, D].
mx::array expand(const mx::array& y,
                 const mx::array& streams,
                 const HyperMix& mix);

}  // namespace mlxlm::nn

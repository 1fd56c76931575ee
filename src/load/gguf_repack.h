// Tensors of a GGUF file as MLX arrays: quantized blocks become affine groups
// of 32, value = scale * q + bias, with float32 scales and biases.
//
// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, IQ4_NL, IQ4_XS, MXFP4 keep their
// values bit for bit, and so does Q3_K, at 8 bits. Q2_K and Q6_K, whose groups
// have 16 values, are fitted at 8 bits; the error is measured.
#pragma once

#include <cstdint>
#include <vector>

#include <mlx/array.h>

#include "load/checkpoint.h"
#include "load/gguf_file.h"

namespace mlxlm {

namespace mx = mlx::core;

// What a conversion that isn't exact cost.
struct GgufLoss {
  double squared_error = 0;
  double squared_values = 0;
  double largest = 0;  // error over its group's largest value
  void add(const GgufLoss& other);
  // The error's root mean square over that of the values.
  double relative() const;
};

struct GgufMatrix {
  mx::array weight;  // [..., N, K * bits / 32] uint32
  mx::array scales;  // [..., N, K / 32] float32
  mx::array biases;  // as scales
  Quantization quantization;
  GgufLoss loss;
};

// True for tensors that repack_tensor() takes; F32, F16 and BF16 are dense.
bool is_quantized(const GgufTensor& tensor);

// Bytes of the arrays that a tensor becomes.
std::uint64_t converted_bytes(const GgufTensor& tensor);

// Row r of the result is row source_rows[r] of the tensor, seen as a matrix
// [all rows, K]; empty: as they stand. Throws Error{format} where a scale isn't
// a finite number.
GgufMatrix repack_tensor(const GgufFile& file,
                         const GgufTensor& tensor,
                         const std::vector<int>& source_rows = {});

// The tensor's values: F32, F16 and BF16 as they are, quantized formats in
// float32. Throws Error{unsupported} for formats that can't be read.
mx::array dense_tensor(const GgufFile& file,
                       const GgufTensor& tensor,
                       const std::vector<int>& source_rows = {});

}  // namespace mlxlm

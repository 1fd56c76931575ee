// Weights in the form of the kernels, and parameters that are remade from it.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <mlxlm/model.h>

#include "kernels/seam.h"

namespace mlxlm {

// A parameter of which the model uses parts of the rows: of each of
// `num_groups` runs of rows the first ones, the next ones and so on.
struct SplitTensor {
  std::uintptr_t whole = 0;  // mx::array::id() of the parameter
  int num_groups = 1;
  std::vector<mx::array> parts;  // [rows, K] each

  mx::array joined() const;
};

class WeightPreparation {
 public:
  WeightPreparation(std::vector<Parameter>& parameters,
                    std::vector<SplitTensor> splits);

  // kernels::Table::prepare() for a linear made of parameters or of parts of
  // them, which become arrays that are remade from what it made. Others stay.
  void operator()(kernels::Linear& linear);

  // The parameters that stayed what they were.
  std::vector<mx::array> others() const;

 private:
  // Where an array came from: a parameter, or a part of a split one.
  struct Place {
    Parameter* parameter = nullptr;
    SplitTensor* split = nullptr;
    std::size_t part = 0;
  };
  void put(const Place& place, const mx::array& value);

  std::vector<Parameter>& parameters_;
  std::unordered_set<const Parameter*> replaced_;
  std::vector<SplitTensor> splits_;
  std::unordered_map<std::uintptr_t, Place> places_;
  std::unordered_map<SplitTensor*, std::size_t> num_put_;
};

}  // namespace mlxlm

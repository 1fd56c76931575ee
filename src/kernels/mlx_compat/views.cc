#include "kernels/mlx_compat/views.h"

#include <set>
#include <string_view>

#include <mlx/primitives.h>

namespace mlxlm::kernels {

bool is_view(const mx::array& array) {
  static const std::set<std::string_view> views{"AsStrided",
                                                "Broadcast",
                                                "BroadcastAxes",
                                                "Depends",
                                                "ExpandDims",
                                                "Flatten",
                                                "Slice",
                                                "Split",
                                                "Squeeze",
                                                "StopGradient",
                                                "Transpose",
                                                "Unflatten"};
  return views.contains(array.primitive().name());
}

}  // namespace mlxlm::kernels

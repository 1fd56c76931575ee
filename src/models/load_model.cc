#include <mlxlm/model.h>

#include "load/checkpoint.h"
#include "models/make_model.h"

namespace mlxlm {

ModelPtr load_model(const std::string& name, const LoadOptions& options) {
  return make_model(load_checkpoint(name, options), options);
}

}  // namespace mlxlm

// What an ARM processor can do beyond what every 64-bit one can.
#pragma once

namespace mlxlm::kernels::cpu {

bool has_arm_dot_products();  // sdot, of signed bytes
bool has_arm_int8_matmul();   // usdot, of unsigned bytes with signed ones

}  // namespace mlxlm::kernels::cpu

# MLX's C++ library, as scripts/setup unpacked it from the wheel (or as
# CMAKE_PREFIX_PATH names it).
set(MLXLM_MLX_VERSION 0.32.4)
set(MLXLM_BACKEND "" CACHE STRING "MLX build to use: cpu, cuda or metal")
if(NOT MLXLM_BACKEND)
  if(APPLE)
    set(MLXLM_BACKEND metal)
  elseif(EXISTS ${PROJECT_SOURCE_DIR}/build/mlx-${MLXLM_MLX_VERSION}-cuda)
    set(MLXLM_BACKEND cuda)
  else()
    set(MLXLM_BACKEND cpu)
  endif()
endif()
list(PREPEND CMAKE_PREFIX_PATH
  ${PROJECT_SOURCE_DIR}/build/mlx-${MLXLM_MLX_VERSION}-${MLXLM_BACKEND}/mlx)
find_package(MLX ${MLXLM_MLX_VERSION} CONFIG)
if(NOT MLX_FOUND)
  message(FATAL_ERROR
    "MLX ${MLXLM_MLX_VERSION} (${MLXLM_BACKEND}) was not found. Run scripts/setup, "
    "or name its prefix with -DCMAKE_PREFIX_PATH=...")
endif()

# MLX's C++ library as target `mlx`: the pinned build that scripts/setup
# unpacked into build/, or the one that CMAKE_PREFIX_PATH leads to.
set(MLXLM_MLX_VERSION 0.32.4)
set(MLXLM_BACKEND "" CACHE STRING "MLX build to use: cpu, cuda or metal")
set(mlx_builds ${PROJECT_SOURCE_DIR}/build/mlx-${MLXLM_MLX_VERSION})
if(NOT MLXLM_BACKEND)
  if(APPLE)
    set(MLXLM_BACKEND metal)
  elseif(EXISTS ${mlx_builds}-cuda)
    set(MLXLM_BACKEND cuda)
  else()
    set(MLXLM_BACKEND cpu)
  endif()
endif()
set(MLXLM_MLX_FOLDER ${mlx_builds}-${MLXLM_BACKEND})
set(mlx_targets ${MLXLM_MLX_FOLDER}/mlx/share/cmake/MLX/MLXTargets.cmake)
if(EXISTS ${mlx_targets})
  # Not MLXConfig.cmake: that of the CUDA build asks for CUDA's compiler, which
  # nothing here needs.
  include(${mlx_targets})
  # Its CUDA libraries need not be there to link, only to run.
  set_target_properties(mlx PROPERTIES
    INTERFACE_LINK_OPTIONS "$<$<PLATFORM_ID:Linux>:LINKER:--allow-shlib-undefined>")
else()
  set(MLXLM_MLX_FOLDER "")
  find_package(MLX ${MLXLM_MLX_VERSION} CONFIG)
  if(NOT MLX_FOUND)
    message(FATAL_ERROR
      "MLX ${MLXLM_MLX_VERSION} (${MLXLM_BACKEND}) was not found. Run "
      "scripts/setup, or name its prefix with -DCMAKE_PREFIX_PATH=...")
  endif()
endif()

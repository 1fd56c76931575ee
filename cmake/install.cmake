# cmake --install: the program, headers, libraries, and a CMake package that
# brings MLX along, so that the prefix stands alone and can be moved.
include(CMakePackageConfigHelpers)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/mlxlm)
# What is not for the user to link by hand.
set(private_folder ${CMAKE_INSTALL_LIBDIR}/mlxlm)

get_property(layers GLOBAL PROPERTY MLXLM_LAYERS)
install(TARGETS mlxlm ${layers} EXPORT mlxlmTargets
  ARCHIVE DESTINATION ${private_folder})
install(EXPORT mlxlmTargets NAMESPACE mlxlm:: DESTINATION ${package_folder})
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(TARGET mlxlm_rust)
  get_target_property(rust_library mlxlm_rust IMPORTED_LOCATION)
  install(FILES ${rust_library} DESTINATION ${private_folder})
endif()
if(MLXLM_MLX_FOLDER)
  install(DIRECTORY ${MLXLM_MLX_FOLDER}/ DESTINATION ${private_folder}/mlx
    USE_SOURCE_PERMISSIONS)
endif()

if(TARGET mlx-lm)
  set(mlx_libraries ${private_folder}/mlx/mlx/lib)
  if(APPLE)
    set(origin @loader_path)
  else()
    set(origin $ORIGIN)
  endif()
  file(RELATIVE_PATH up /${CMAKE_INSTALL_BINDIR} /${mlx_libraries})
  set_target_properties(mlx-lm PROPERTIES INSTALL_RPATH "${origin}/${up}")
  if(NOT MLXLM_MLX_FOLDER)
    set_target_properties(mlx-lm PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
  endif()
  install(TARGETS mlx-lm RUNTIME)
endif()

configure_package_config_file(cmake/mlxlmConfig.cmake.in
  ${PROJECT_BINARY_DIR}/mlxlmConfig.cmake
  INSTALL_DESTINATION ${package_folder}
  PATH_VARS private_folder)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/mlxlmConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/mlxlmConfig.cmake
  ${PROJECT_BINARY_DIR}/mlxlmConfigVersion.cmake
  DESTINATION ${package_folder})

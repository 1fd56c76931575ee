# One static library and one test program per layer. -fPIC everywhere, so that
# libraries and programs share precompiled headers.

add_library(mlxlm_options INTERFACE)
target_compile_options(mlxlm_options INTERFACE -fPIC -Wall -Wextra -Wno-psabi
  -Wno-missing-field-initializers)
# The library's code is checked, and the tests' only for races, which both take
# part in: checked, they would take five times as long to compile.
add_library(mlxlm_sanitized INTERFACE)
if(MLXLM_SANITIZE)
  target_compile_options(mlxlm_sanitized INTERFACE
    -fsanitize=${MLXLM_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(mlxlm_options INTERFACE -fsanitize=${MLXLM_SANITIZE})
  if(MLXLM_SANITIZE MATCHES "thread")
    target_link_libraries(mlxlm_options INTERFACE mlxlm_sanitized)
  endif()
endif()

# Tests spend their time in the library: compiled sooner, not faster.
add_library(mlxlm_test_options INTERFACE)
target_link_libraries(mlxlm_test_options INTERFACE mlxlm_options)
target_compile_options(mlxlm_test_options INTERFACE
  $<$<CONFIG:Release>:-O1> $<$<CONFIG:RelWithDebInfo>:-O0>)

# mlxlm_layer(NAME DEPENDS target...): every .cc of this folder (tests aside)
# as static library mlxlm_NAME.
function(mlxlm_layer name)
  cmake_parse_arguments(ARG "" "" "DEPENDS;EXTRA_SOURCES" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS *.cc)
  list(FILTER sources EXCLUDE REGEX "_(test|bench)\\.cc$")
  add_library(mlxlm_${name} STATIC ${sources} ${ARG_EXTRA_SOURCES})
  add_library(mlxlm::${name} ALIAS mlxlm_${name})
  set_target_properties(mlxlm_${name} PROPERTIES EXPORT_NAME ${name})
  target_include_directories(mlxlm_${name}
    PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
           $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
    PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_compile_features(mlxlm_${name} PUBLIC cxx_std_20)
  target_link_libraries(mlxlm_${name} PUBLIC ${ARG_DEPENDS} mlx
    PRIVATE $<BUILD_INTERFACE:mlxlm_options> $<BUILD_INTERFACE:mlxlm_sanitized>)
  mlxlm_precompile(mlxlm_${name} mlxlm_mlx_headers)
  set_property(GLOBAL APPEND PROPERTY MLXLM_LAYERS mlxlm_${name})
endfunction()

# mlxlm_tests(NAME [SOURCES file...] [LABELS label...] DEPENDS target...): the
# folder's *_test.cc as one GoogleTest program, each case one ctest test. They
# run in exact mode, which is what the reference's numbers are compared with.
function(mlxlm_tests name)
  if(NOT MLXLM_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPENDS;LABELS" ${ARGN})
  if(NOT ARG_SOURCES)
    file(GLOB ARG_SOURCES CONFIGURE_DEPENDS *_test.cc)
  endif()
  if(NOT ARG_SOURCES)
    return()
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name}_test ${ARG_SOURCES})
  target_include_directories(${name}_test PRIVATE
    ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name}_test PRIVATE
    ${ARG_DEPENDS} mlxlm_test_support GTest::gmock_main mlxlm_test_options)
  mlxlm_precompile(${name}_test mlxlm_test_headers)
  if("unit" IN_LIST ARG_LABELS)
    add_dependencies(unit_tests ${name}_test)
  else()
    add_dependencies(whole_tests ${name}_test)
  endif()
  gtest_discover_tests(${name}_test
    DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
               ENVIRONMENT MLX_LM_CPU_MODE=exact)
endfunction()

# Two precompiled sets, built once: MLX for the library, MLX and GoogleTest for
# the tests. Parsing them is most of the build's time otherwise.
function(mlxlm_header_set name)
  if(NOT MLXLM_PRECOMPILE_HEADERS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "HEADERS;LIBRARIES" ${ARGN})
  file(WRITE ${PROJECT_BINARY_DIR}/${name}.cc "")
  add_library(${name} OBJECT ${PROJECT_BINARY_DIR}/${name}.cc)
  target_link_libraries(${name} PRIVATE ${ARG_LIBRARIES} mlxlm_options)
  target_precompile_headers(${name} PRIVATE ${ARG_HEADERS})
endfunction()

function(mlxlm_precompile target set)
  if(MLXLM_PRECOMPILE_HEADERS)
    target_precompile_headers(${target} REUSE_FROM ${set})
  endif()
endfunction()

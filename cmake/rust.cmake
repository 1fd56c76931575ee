# The Rust crate (tokenizers, chat templates, hub downloads) as one static
# library, built by cargo with the committed lock file.
set(setup_cargo "")
if(EXISTS ${PROJECT_SOURCE_DIR}/build/cargo-path)  # scripts/setup's choice
  file(STRINGS ${PROJECT_SOURCE_DIR}/build/cargo-path setup_cargo)
endif()
find_program(MLXLM_CARGO NAMES ${setup_cargo} cargo REQUIRED)
# What its standard library, and on macOS the system's certificates, need.
set(MLXLM_RUST_NEEDS "$<$<PLATFORM_ID:Linux>:dl;m;pthread>"
  "$<$<PLATFORM_ID:Darwin>:-framework Security;-framework CoreFoundation>")
set(MLXLM_RUST_FOLDER ${PROJECT_BINARY_DIR}/rust CACHE PATH
  "Where cargo builds; builds of several kinds can share one")
set(rust_library ${MLXLM_RUST_FOLDER}/release/libmlxlm_rust.a)
# Ubuntu names newer toolchains cargo-1.NN and rustc-1.NN.
set(rust_environment CARGO_TARGET_DIR=${MLXLM_RUST_FOLDER})
if(MLXLM_CARGO MATCHES "/cargo-(1\\.[0-9]+)$")
  list(APPEND rust_environment RUSTC=rustc-${CMAKE_MATCH_1})
endif()
file(GLOB_RECURSE rust_sources CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/rust/src/*.rs ${PROJECT_SOURCE_DIR}/rust/Cargo.*)
add_custom_command(
  OUTPUT ${rust_library}
  COMMAND ${CMAKE_COMMAND} -E env ${rust_environment} ${MLXLM_CARGO}
    build --release --locked --quiet --manifest-path
    ${PROJECT_SOURCE_DIR}/rust/Cargo.toml
  DEPENDS ${rust_sources}
  COMMENT "Building the Rust crate (tokenizers, templates)"
  USES_TERMINAL
  VERBATIM)
add_custom_target(mlxlm_rust_build DEPENDS ${rust_library})
add_library(mlxlm_rust STATIC IMPORTED GLOBAL)
set_target_properties(mlxlm_rust PROPERTIES
  IMPORTED_LOCATION ${rust_library}
  INTERFACE_INCLUDE_DIRECTORIES ${PROJECT_SOURCE_DIR}/rust/include
  INTERFACE_LINK_LIBRARIES "${MLXLM_RUST_NEEDS}")
add_dependencies(mlxlm_rust mlxlm_rust_build)

# The Rust crate (tokenizers, chat templates, hub downloads) as one static
# library, built by cargo with the committed lock file.
find_program(MLXLM_CARGO NAMES cargo cargo-web REQUIRED)
set(rust_library ${PROJECT_BINARY_DIR}/rust/release/libmlxlm_rust.a)
file(GLOB_RECURSE rust_sources CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/rust/src/*.rs ${PROJECT_SOURCE_DIR}/rust/Cargo.*)
add_custom_command(
  OUTPUT ${rust_library}
  COMMAND ${CMAKE_COMMAND} -E env
    CARGO_TARGET_DIR=${PROJECT_BINARY_DIR}/rust
    ${MLXLM_CARGO} build --release --locked --quiet
    --manifest-path ${PROJECT_SOURCE_DIR}/rust/Cargo.toml
  DEPENDS ${rust_sources}
  COMMENT "Building the Rust crate (tokenizers, templates)"
  USES_TERMINAL
  VERBATIM)
add_custom_target(mlxlm_rust_build DEPENDS ${rust_library})
add_library(mlxlm_rust STATIC IMPORTED GLOBAL)
set_target_properties(mlxlm_rust PROPERTIES
  IMPORTED_LOCATION ${rust_library}
  INTERFACE_INCLUDE_DIRECTORIES ${PROJECT_SOURCE_DIR}/rust/include
  INTERFACE_LINK_LIBRARIES "$<$<PLATFORM_ID:Linux>:dl;m;pthread>")
add_dependencies(mlxlm_rust mlxlm_rust_build)

# The test's steps; any that fails ends it.
function(run name)
  execute_process(COMMAND ${ARGN}
    RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${name} failed (${code}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

# The program is the one that README.md shows.
file(READ ${PROJECT}/main.cc program)
file(READ ${PROJECT}/../../../README.md readme)
string(FIND "${readme}" "```cpp\n${program}```" place)
if(place EQUAL -1)
  message(FATAL_ERROR "README.md does not show ${PROJECT}/main.cc")
endif()

file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
run(install ${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/first
  --config ${CONFIGURATION})
file(RENAME ${WORK}/first ${WORK}/prefix)
if(EXISTS ${WORK}/prefix/bin/mlx-lm)
  run("the installed program" ${WORK}/prefix/bin/mlx-lm --help)
endif()
run(configure ${CMAKE_COMMAND} -S ${PROJECT} -B ${WORK}/build -G ${GENERATOR}
  -D CMAKE_BUILD_TYPE=Release -D CMAKE_PREFIX_PATH=${WORK}/prefix
  -D CMAKE_CXX_COMPILER=${COMPILER}
  -D CMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER})
run(build ${CMAKE_COMMAND} --build ${WORK}/build)
run("writing a model" ${WRITE_MODEL} ${WORK}/model)
run(consumer ${WORK}/build/consumer ${WORK}/model)
if(output STREQUAL "")
  message(FATAL_ERROR "the consumer wrote nothing")
endif()
file(REMOVE_RECURSE ${WORK})

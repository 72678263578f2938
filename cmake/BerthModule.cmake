# The functions that the CMakeLists.txt files of this project are made of. CONTRIBUTING.md shows them in use.

set(BERTH_TEST_RESULTS "${CMAKE_BINARY_DIR}/test-results")
file(MAKE_DIRECTORY "${BERTH_TEST_RESULTS}")

# Time limits are stated for an ordinary build; sanitizers cost several times as much.
set(BERTH_TIMEOUT_FACTOR 1)
if(BERTH_SANITIZE)
  set(BERTH_TIMEOUT_FACTOR 6)
endif()

# What every target of ours has: the include root, warnings, the modules and libraries it uses.
function(_berth_target target scope)
  target_include_directories(${target} ${scope} "${CMAKE_SOURCE_DIR}/src")
  if(NOT scope STREQUAL "INTERFACE")
    target_compile_options(${target} PRIVATE ${BERTH_WARNINGS})
  endif()
  list(TRANSFORM ARG_DEPS PREPEND berth_ OUTPUT_VARIABLE modules)
  target_link_libraries(${target} ${scope} ${modules} ${ARG_LINK} Threads::Threads)
endfunction()

# Headers of libraries that much of a target includes, parsed once for it; BERTH_PRECOMPILE. Ours are not among them, so
# that a change of one costs what it did. What a source forgets to include is found by clang-tidy, which has none of this.
function(_berth_precompile target)
  if(NOT BERTH_PRECOMPILE)
    return()
  endif()
  cmake_parse_arguments(PARSE_ARGV 1 ARG "GTEST" "" "LINK")
  set(headers
      <algorithm> <array> <cerrno> <chrono> <cstdint> <cstring> <expected> <filesystem> <functional> <map> <memory>
      <optional> <set> <span> <string> <string_view> <utility> <vector> <fmt/format.h> <spdlog/spdlog.h>)
  if("nlohmann_json::nlohmann_json" IN_LIST ARG_LINK)
    list(APPEND headers <nlohmann/json.hpp>)
  endif()
  if("Boost::headers" IN_LIST ARG_LINK)
    list(APPEND headers <boost/asio/awaitable.hpp> <boost/asio/io_context.hpp> <boost/asio/steady_timer.hpp>
         <boost/asio/thread_pool.hpp>)
  endif()
  if(ARG_GTEST)
    list(APPEND headers <gmock/gmock.h> <gtest/gtest.h>)
  endif()
  target_precompile_headers(${target} PRIVATE ${headers})
  # Without the time in it, ccache can tell that it is the same.
  target_compile_options(${target} PRIVATE "SHELL:-Xclang -fno-pch-timestamp")
endfunction()

# Shared by every kind of GoogleTest program: where its report goes, how long it may take, how it is found.
function(_berth_add_gtest name target label timeout)
  add_test(NAME "${name}" COMMAND ${target})
  math(EXPR timeout "${timeout} * ${BERTH_TIMEOUT_FACTOR}")
  set_tests_properties("${name}" PROPERTIES
    LABELS "${label}" TIMEOUT "${timeout}"
    ENVIRONMENT "GTEST_OUTPUT=xml:${BERTH_TEST_RESULTS}/${name}.xml")
endfunction()

# berth_library(NAME disk DEPS async base LINK PkgConfig::uring [TEST_LINK lib] [TEST_TIMEOUT 60]
#               [SABOTAGE] [EXCLUDE regex])
#
# One module: every *.cc of this directory and below makes the static library berth_<name> (alias berth::<name>);
# every *_test.cc goes into one GoogleTest program <name>_test, ctest entry unit.<name>;
# every *_fuzz.cc is a libFuzzer target of its own, see _berth_fuzzer.
# DEPS are modules, LINK are libraries from BerthDependencies; both are passed on to users of the module.
# SABOTAGE compiles the module a second time, with BERTH_SABOTAGE=1, as berth_<name>_sabotage: for tests only.
# EXCLUDE leaves out sources whose path matches: what is not linked into the product.
# A module without sources yet is an empty interface library.
function(berth_library)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "SABOTAGE" "NAME;TEST_TIMEOUT;EXCLUDE" "DEPS;LINK;TEST_LINK")
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "berth_library(${ARG_NAME}): unknown arguments: ${ARG_UNPARSED_ARGUMENTS}")
  endif()
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS "*.cc")
  if(ARG_EXCLUDE)
    list(FILTER sources EXCLUDE REGEX "${ARG_EXCLUDE}")
  endif()
  set(tests ${sources})
  set(fuzzers ${sources})
  list(FILTER sources EXCLUDE REGEX "_(test|fuzz)\\.cc$")
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  list(FILTER fuzzers INCLUDE REGEX "_fuzz\\.cc$")

  set(library berth_${ARG_NAME})
  if(sources)
    add_library(${library} STATIC ${sources})
    _berth_target(${library} PUBLIC)
    _berth_precompile(${library} LINK ${ARG_LINK})
  else()
    add_library(${library} INTERFACE)
    _berth_target(${library} INTERFACE)
  endif()
  add_library(berth::${ARG_NAME} ALIAS ${library})

  if(ARG_SABOTAGE)
    set(sabotaged ${library}_sabotage)
    if(sources)
      add_library(${sabotaged} STATIC EXCLUDE_FROM_ALL ${sources})
      _berth_target(${sabotaged} PUBLIC)
      target_compile_definitions(${sabotaged} PUBLIC BERTH_SABOTAGE=1)
    else()
      add_library(${sabotaged} INTERFACE)
      _berth_target(${sabotaged} INTERFACE)
      target_compile_definitions(${sabotaged} INTERFACE BERTH_SABOTAGE=1)
    endif()
    add_library(berth::${ARG_NAME}_sabotage ALIAS ${sabotaged})
  endif()

  if(tests)
    if(NOT ARG_TEST_TIMEOUT)
      set(ARG_TEST_TIMEOUT 60)
    endif()
    berth_test_program(NAME ${ARG_NAME}_test TEST unit.${ARG_NAME} LABEL unit SOURCES ${tests}
                       DEPS ${ARG_NAME} LINK ${ARG_TEST_LINK} TIMEOUT ${ARG_TEST_TIMEOUT})
    _berth_precompile(${ARG_NAME}_test GTEST LINK ${ARG_LINK})
  endif()
  foreach(fuzzer IN LISTS fuzzers)
    _berth_fuzzer(${fuzzer} ${ARG_NAME})
  endforeach()
endfunction()

# A GoogleTest program and its ctest entry; src/testing and the path of tests/data come with it.
function(berth_test_program)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "NO_MAIN" "NAME;TEST;LABEL;TIMEOUT" "SOURCES;DEPS;LINK;DEFINES")
  add_executable(${ARG_NAME} ${ARG_SOURCES})
  _berth_target(${ARG_NAME} PRIVATE)
  target_link_libraries(${ARG_NAME} PRIVATE $<TARGET_NAME_IF_EXISTS:berth_testing> GTest::gmock)
  if(NOT ARG_NO_MAIN)
    target_link_libraries(${ARG_NAME} PRIVATE GTest::gmock_main)
  endif()
  target_compile_definitions(${ARG_NAME} PRIVATE BERTH_TEST_DATA_DIR="${CMAKE_SOURCE_DIR}/tests/data" ${ARG_DEFINES})
  target_compile_options(${ARG_NAME} PRIVATE -Wno-gnu-zero-variadic-macro-arguments)
  _berth_add_gtest(${ARG_TEST} ${ARG_NAME} ${ARG_LABEL} ${ARG_TIMEOUT})
endfunction()

# The main of fuzz targets outside the fuzz preset.
add_library(berth_fuzz_replay OBJECT EXCLUDE_FROM_ALL "${CMAKE_SOURCE_DIR}/tests/fuzz/replay_main.cc")
_berth_target(berth_fuzz_replay PRIVATE)

# One fuzz target from NAME_fuzz.cc, which defines LLVMFuzzerTestOneInput. In the fuzz preset it is a libFuzzer
# program (make fuzz). In every other preset a plain main replays the corpus, tests/fuzz/corpus/NAME_fuzz/*, as the
# ctest entry fuzz-corpus.NAME_fuzz.
function(_berth_fuzzer source module)
  get_filename_component(target "${source}" NAME_WE)
  add_executable(${target} ${source})
  set(ARG_DEPS ${module})
  set(ARG_LINK "")
  _berth_target(${target} PRIVATE)
  if(BERTH_SANITIZE STREQUAL "fuzz")
    target_link_options(${target} PRIVATE -fsanitize=fuzzer)
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/fuzzers")
    set_property(GLOBAL APPEND PROPERTY BERTH_FUZZERS ${target})
  else()
    target_link_libraries(${target} PRIVATE berth_fuzz_replay)
    add_test(NAME fuzz-corpus.${target} COMMAND ${target} "${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${target}")
    set_tests_properties(fuzz-corpus.${target} PROPERTIES LABELS fuzz-corpus TIMEOUT 120)
  endif()
endfunction()

# berth_program(NAME berth SOURCES berth.cc DEPS control disk LINK PkgConfig::cli11): a program people run.
function(berth_program)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "" "NAME" "SOURCES;DEPS;LINK")
  add_executable(${ARG_NAME} ${ARG_SOURCES})
  _berth_target(${ARG_NAME} PRIVATE)
  set_target_properties(${ARG_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}")
endfunction()

# berth_bare_target(target): what runs apart from the rest, a program that tests look at from outside or a library in
# somebody else's process: the include root and the warnings, but no sanitizer and nothing of ours linked in.
function(berth_bare_target target)
  _berth_target(${target} PRIVATE)
  target_compile_options(${target} PRIVATE -fno-sanitize=all)
  target_link_options(${target} PRIVATE -fno-sanitize=all)
endfunction()

# berth_simulation(NAME volume_sim SOURCES volume_sim.cc DEPS disk [TIMEOUT 600] [NO_MAIN] [SABOTAGE])
#
# One simulation program, ctest entry sim.<name without _sim>. NO_MAIN: the sources have a main of their own and
# GoogleTest's is left out. SABOTAGE: modules that have a sabotaged build are linked in that one.
function(berth_simulation)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "NO_MAIN;SABOTAGE" "NAME;TIMEOUT" "SOURCES;DEPS;LINK")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  if(ARG_SABOTAGE)
    set(modules "")
    foreach(module IN LISTS ARG_DEPS)
      if(TARGET berth_${module}_sabotage)
        set(module ${module}_sabotage)
      endif()
      list(APPEND modules ${module})
    endforeach()
    set(ARG_DEPS ${modules})
  endif()
  set(no_main "")
  if(ARG_NO_MAIN)
    set(no_main NO_MAIN)
  endif()
  string(REGEX REPLACE "_sim$" "" test "${ARG_NAME}")
  berth_test_program(NAME ${ARG_NAME} TEST sim.${test} LABEL sim TIMEOUT ${ARG_TIMEOUT} ${no_main}
                     SOURCES ${ARG_SOURCES} DEPS ${ARG_DEPS} LINK ${ARG_LINK})
  set_target_properties(${ARG_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/simulations")
  set_tests_properties(sim.${test} PROPERTIES COST 100)
  if(NOT ARG_SABOTAGE)
    set_property(GLOBAL APPEND PROPERTY BERTH_SIMULATIONS ${ARG_NAME})
  endif()
endfunction()

# berth_simulations(DEPS disk nbd [TIMEOUT 600]): a simulation from each *_sim.cc of this directory. A
# *_sabotage_sim.cc is linked with the sabotaged builds. Every other *.cc is a part of each of them.
function(berth_simulations)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "NO_MAIN" "TIMEOUT" "DEPS;LINK")
  file(GLOB simulations CONFIGURE_DEPENDS "*_sim.cc")
  file(GLOB common CONFIGURE_DEPENDS "*.cc")
  list(FILTER common EXCLUDE REGEX "_sim\\.cc$")
  foreach(source IN LISTS simulations)
    get_filename_component(name "${source}" NAME_WE)
    set(options "")
    if(ARG_NO_MAIN)
      list(APPEND options NO_MAIN)
    endif()
    if(name MATCHES "_sabotage_sim$")
      list(APPEND options SABOTAGE)
    endif()
    berth_simulation(NAME ${name} SOURCES ${source} ${common} DEPS ${ARG_DEPS} LINK ${ARG_LINK}
                     TIMEOUT ${ARG_TIMEOUT} ${options})
  endforeach()
endfunction()

# berth_e2e_tests(PROGRAM berth [TIMEOUT 900]): each test_*.py of this directory is a ctest entry e2e.<name>. They start
# first and run one after another, beside the other kinds. BERTH_BIN is the program, BERTH_BUILD_DIR the build directory.
# A file that needs longer: set_tests_properties(e2e.NAME PROPERTIES TIMEOUT 1800) after the call.
function(berth_e2e_tests)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "" "PROGRAM;TIMEOUT" "")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 900)
  endif()
  math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * ${BERTH_TIMEOUT_FACTOR}")
  file(GLOB scripts CONFIGURE_DEPENDS "test_*.py")
  foreach(script IN LISTS scripts)
    get_filename_component(name "${script}" NAME_WE)
    string(REGEX REPLACE "^test_" "" name "${name}")
    add_test(NAME e2e.${name}
             COMMAND /usr/bin/python3 -m pytest -q -rs --tb=short -p no:cacheprovider
                     "--junitxml=${BERTH_TEST_RESULTS}/e2e.${name}.xml" "${script}"
             WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}")
    set_tests_properties(e2e.${name} PROPERTIES
      LABELS e2e TIMEOUT ${ARG_TIMEOUT} RESOURCE_LOCK e2e COST 1000
      ENVIRONMENT "BERTH_BIN=$<TARGET_FILE:${ARG_PROGRAM}>;BERTH_BUILD_DIR=${CMAKE_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
  endforeach()
endfunction()

# berth_benchmarks(DEPS disk): each *_bench.cc of this directory is a Google Benchmark program of that name (make bench).
function(berth_benchmarks)
  cmake_parse_arguments(PARSE_ARGV 0 ARG "" "" "DEPS;LINK")
  file(GLOB sources CONFIGURE_DEPENDS "*_bench.cc")
  foreach(source IN LISTS sources)
    get_filename_component(name "${source}" NAME_WE)
    add_executable(${name} ${source})
    _berth_target(${name} PRIVATE)
    target_link_libraries(${name} PRIVATE $<TARGET_NAME_IF_EXISTS:berth_testing>
                          benchmark::benchmark benchmark::benchmark_main)
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/benchmarks")
    set_property(GLOBAL APPEND PROPERTY BERTH_BENCHMARKS ${name})
  endforeach()
endfunction()

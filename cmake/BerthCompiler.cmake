# Language level, warnings, sanitizers, linker and compiler cache. The presets choose; this file applies.

set(BERTH_SANITIZE "" CACHE STRING "'', 'address' (with undefined), 'thread' or 'fuzz' (libFuzzer with address)")
option(BERTH_WERROR "Warnings are errors" OFF)
option(BERTH_PRECOMPILE "Parse the headers of libraries once for each target" OFF)

set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_SCAN_FOR_MODULES OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang" OR CMAKE_CXX_COMPILER_VERSION VERSION_LESS 19)
  message(FATAL_ERROR "Berth is built with clang 19 or later; use a preset: cmake --preset dev")
endif()

# mold links in a fraction of the time; lld is the fallback.
find_program(BERTH_MOLD mold)
add_link_options("-fuse-ld=$<IF:$<BOOL:${BERTH_MOLD}>,mold,lld-19>")

# One cache for all build directories: paths are made relative before they are hashed and recorded.
find_program(BERTH_CCACHE ccache)
if(BERTH_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER env "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros ${BERTH_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
# (ccache names sources relative to build/PRESET: that prefix goes too.)
add_compile_options("-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=" -ffile-prefix-map=../../= "-ffile-compilation-dir=.")

add_compile_definitions(_GNU_SOURCE _FILE_OFFSET_BITS=64)
if(NOT CMAKE_BUILD_TYPE STREQUAL "Release")
  add_compile_definitions(_GLIBCXX_ASSERTIONS)
endif()

if(BERTH_SANITIZE STREQUAL "address")
  set(sanitizer_flags -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
elseif(BERTH_SANITIZE STREQUAL "thread")
  set(sanitizer_flags -fsanitize=thread -fno-omit-frame-pointer)
elseif(BERTH_SANITIZE STREQUAL "fuzz")
  set(sanitizer_flags -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
elseif(BERTH_SANITIZE)
  message(FATAL_ERROR "BERTH_SANITIZE=${BERTH_SANITIZE}: expected '', 'address', 'thread' or 'fuzz'")
endif()
add_compile_options(${sanitizer_flags})
add_link_options(${sanitizer_flags})

# Applied to our own targets only, by BerthModule.
set(BERTH_WARNINGS
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor -Woverloaded-virtual
    -Wimplicit-fallthrough -Wextra-semi -Wunused -Wthread-safety -Wzero-as-null-pointer-constant
    -Wno-gnu-statement-expression-from-macro-expansion -Wno-gnu-statement-expression  # TRY is one
    -Wno-missing-designated-field-initializers -Wno-missing-field-initializers  # options structs have defaults
)
if(BERTH_WERROR)
  list(APPEND BERTH_WARNINGS -Werror)
endif()

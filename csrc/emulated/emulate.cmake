# Replaces the sources that hold AVX-512 and VNNI by copies that compute the same with AVX2 (see avx512.h).
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  message(FATAL_ERROR "PHLITE_EMULATE needs GCC, got ${CMAKE_CXX_COMPILER_ID}")
endif()
if(NOT CMAKE_CURRENT_BINARY_DIR MATCHES "emulated")
  unset(PHLITE_EMULATE CACHE)  # or the next normal build in this folder would be emulated too
  message(FATAL_ERROR "PHLITE_EMULATE needs a build folder of its own, named so: -Cbuild-dir=build/emulated")
endif()

set(CSRC ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
set(EMULATED_DIR ${CMAKE_CURRENT_BINARY_DIR}/emulated)
set(EMULATED attention/avx512vnni.cpp cpu/isa.cpp cpu/limits.cpp matmul/avx512vnni.cpp matmul/avxvnni.cpp
             quantize/avx512vnni.cpp)
list(TRANSFORM EMULATED PREPEND ${CSRC}/ OUTPUT_VARIABLE ORIGINALS)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${ORIGINALS} ${CSRC}/emulated/emulate.py)
execute_process(COMMAND ${Python_EXECUTABLE} ${CSRC}/emulated/emulate.py ${CSRC} ${EMULATED_DIR} ${EMULATED}
                COMMAND_ERROR_IS_FATAL ANY)
list(TRANSFORM EMULATED PREPEND ${EMULATED_DIR}/)
# -O3 takes five times as long over the quantisers; with -O1 the tests take twice as long.
set_source_files_properties(${EMULATED} PROPERTIES COMPILE_OPTIONS -O2)
list(REMOVE_ITEM PHLITE_SOURCES ${ORIGINALS})
list(APPEND PHLITE_SOURCES ${EMULATED})

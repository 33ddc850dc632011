# Writes the header steps.h from the table of steps, and writes it again whenever the table changes. The project's
# CMakeLists.txt and that of tests/csrc/emulation include this file. A step without a formula must not compile: GCC and
# Clang report the missing case.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
set(PCF_STEPS_TABLE ${CMAKE_CURRENT_LIST_DIR}/../pixelcnn_fast/program/steps.py)
set(PCF_STEPS_WRITER ${CMAKE_CURRENT_LIST_DIR}/steps_header.py)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PCF_STEPS_TABLE} ${PCF_STEPS_WRITER})
execute_process(
  COMMAND ${Python_EXECUTABLE} ${PCF_STEPS_WRITER} ${PCF_STEPS_TABLE} ${CMAKE_CURRENT_BINARY_DIR}/generated/steps.h
  COMMAND_ERROR_IS_FATAL ANY)
include_directories(${CMAKE_CURRENT_BINARY_DIR}/generated)
add_compile_options(-Werror=switch)

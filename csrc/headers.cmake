# Writes the header tables.h from the tables in Python, and again whenever one changes; the project's CMakeLists.txt and
# that of tests/csrc/emulation include this file. A step without a formula must not compile: GCC and Clang report it.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
set(package ${CMAKE_CURRENT_LIST_DIR}/../pixelcnn_fast)
set(PCF_HEADERS ${CMAKE_CURRENT_LIST_DIR}/headers.py)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
  ${PCF_HEADERS} ${package}/program/steps.py ${package}/program/schema.py ${package}/heads/options.py)
execute_process(
  COMMAND ${Python_EXECUTABLE} ${PCF_HEADERS} ${CMAKE_CURRENT_BINARY_DIR}/generated COMMAND_ERROR_IS_FATAL ANY)
include_directories(${CMAKE_CURRENT_BINARY_DIR}/generated)
add_compile_options(-Werror=switch)

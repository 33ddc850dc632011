# An object for each kind of numbers and number of tiles, so that they compile beside each other. Sets kernel_objects.
set(most_tiles_fp32 2)  # most_tiles() in plan.h
set(most_tiles_tf32 4)
set(most_tiles_bf16 8)
set(most_tiles_fp16 8)
foreach(math fp32 tf32 bf16 fp16)  # those that take longest first
  foreach(tiles RANGE 1 ${most_tiles_${math}})
    set(object cuda_${math}_${tiles})
    add_library(${object} OBJECT ${CMAKE_CURRENT_LIST_DIR}/kernels/kernels.cu)
    target_compile_definitions(${object} PRIVATE PCF_MATH=${math} PCF_TILES=${tiles})
    list(APPEND kernel_objects ${object})
  endforeach()
endforeach()

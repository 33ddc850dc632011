// mremap as Linux before 6.17 has it: pages of several mappings are not moved at once, and the target is unmapped
// first. For LD_PRELOAD.
#include <cerrno>
#include <cstdarg>
#include <cstdio>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

bool is_one_mapping(const void* data, size_t bytes) {
  const auto address = reinterpret_cast<unsigned long>(data);
  FILE* const maps = std::fopen("/proc/self/maps", "r");
  char line[512];
  unsigned long first, last;
  bool found = false;
  while (!found && std::fgets(line, sizeof line, maps))
    found = std::sscanf(line, "%lx-%lx", &first, &last) == 2 && first <= address && address + bytes <= last;
  std::fclose(maps);
  return found;
}

}  // namespace

extern "C" void* mremap(void* data, size_t old_bytes, size_t bytes, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  void* const to = flags & MREMAP_FIXED ? va_arg(rest, void*) : nullptr;
  va_end(rest);
  if (to && !is_one_mapping(data, old_bytes)) {
    munmap(to, bytes);
    errno = EFAULT;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(syscall(SYS_mremap, data, old_bytes, bytes, flags, to));
}

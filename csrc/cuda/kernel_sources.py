"""Writes a C++ header with the kernels' sources, which compile at their first use: python kernel_sources.py ROOT... OUT

The plan and the kernel that goes through it must be of the same sources, so the module that plans holds the kernels'.
ROOT: folders from which they include each other.
"""

import sys
from pathlib import Path

PATTERNS = ("steps.h", "cuda/standard.h", "cuda/layout.h", "cuda/kernels/[!.]*.h", "cuda/kernels/[!.]*.cu")
HEADER = """\
// The kernels' sources. Written by csrc/cuda/kernel_sources.py.
#pragma once

namespace pcf::cuda {{

struct KernelSource {{
  const char *name, *text;
}};
inline constexpr KernelSource kKernelSources[] = {{
{sources}
}};

}}  // namespace pcf::cuda
"""


def sources(*roots: Path) -> dict[str, str]:
    """Texts by the names by which they are included."""
    found = (
        (path.relative_to(root).as_posix(), path)
        for root in roots
        for pattern in PATTERNS
        for path in root.glob(pattern)
    )
    return {name: path.read_text("utf-8") for name, path in sorted(found)}


if __name__ == "__main__":
    *roots, target = map(Path, sys.argv[1:])
    literals = (f'    {{"{name}", R"source({text})source"}},' for name, text in sources(*roots).items())
    target.write_text(HEADER.format(sources="\n".join(literals)), "utf-8")

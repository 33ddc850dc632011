"""Compiles and runs rates.cu: what this GPU does in a cycle, whatever the library does with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu.build import tool

SOURCE = Path(__file__).with_name("rates.cu")


def compiled(folder: Path, architecture: str = "native") -> Path:
    """-> the program. architecture: as in nvcc's -arch."""
    program = folder / "rates"
    nvcc = os.environ.get("CUDACXX") or tool("nvcc")
    warnings = ["-Xcompiler=-Wall,-Wextra", "-Xptxas=--warn-on-spills,-Werror"]
    command = [nvcc, "-std=c++17", "-O3", f"-arch={architecture}", *warnings, "-o", str(program), str(SOURCE)]
    subprocess.run(command, check=True)
    return program


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(subprocess.run([compiled(Path(folder))], check=False).returncode)


if __name__ == "__main__":
    main()

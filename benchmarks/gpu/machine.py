"""What the machine is. Fails if it has a GPU that torch does not see."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def first_line(*command: str) -> str:
    program = shutil.which(command[0])
    if program is None:
        return "not found"
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"status {done.returncode}"


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    facts = {
        "Python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "pybind11", "pytest")},
        "nvcc": first_line("nvcc", "--version"),
        "driver": first_line(
            "nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"
        ),
    }
    print(json.dumps(facts), flush=True)
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        print(
            json.dumps(
                {
                    "gpu": properties.name,
                    "capability": list(torch.cuda.get_device_capability(0)),
                    "multiprocessors": properties.multi_processor_count,
                    "torch's CUDA": torch.version.cuda,
                }
            )
        )
    elif Path("/dev/nvidiactl").exists():
        sys.exit(
            f"there is a GPU, but torch {facts['torch']}, for CUDA {torch.version.cuda}, does not see it"
        )


if __name__ == "__main__":
    main()

"""Loading the compiled module, or saying why it is missing."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path
from types import ModuleType


def native() -> ModuleType | None:
    """The compiled module, or None; ``why_not_native`` says why."""
    return _load()[0]


def required() -> ModuleType:
    """The compiled module. Raises RuntimeError, saying why, if it is missing."""
    module, why_not = _load()
    if module is None:
        raise RuntimeError(why_not)
    return module


def why_not_native() -> str:
    """Why ``native()`` is None and what to do about it; '' if the module is there."""
    return _load()[1]


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("PIXELCNN_FAST_NATIVE") == "0":
        return None, "PIXELCNN_FAST_NATIVE=0 is set: unset it to use the compiled module"
    name = "pixelcnn_fast._native"
    if (loaded := sys.modules.get(name)) is not None:  # small ops ask at each call
        return loaded, ""
    try:
        return importlib.import_module(name), ""
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        found = sorted(path.name for path in Path(__file__).parent.glob("_native*.so"))
        cause = (
            f"the compiled module is for another Python than {platform.python_version()} ({', '.join(found)})"
            if found
            else "there is no compiled module: the package was installed with PIXELCNN_FAST_NATIVE=0, "
            "or runs from a source folder where it was not built"
        )
        return None, f"{cause}: {_remedy()}"
    except ImportError as error:
        return None, f"the compiled module does not load ({error}): {_remedy()}"


def _remedy() -> str:
    source = Path(__file__).parents[1]
    if (source / "CMakeLists.txt").exists():
        return f"run `make native` or `pip install -e .` in {source}"
    return "install a C++ compiler (GCC 11 or newer, or Clang), then reinstall the package from its source"

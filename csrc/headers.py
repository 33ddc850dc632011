"""Writes tables.h, the C++ of what Python and C++ share: python headers.py FOLDER; headers.cmake does."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "pixelcnn_fast"
FILES = ("program/steps.py", "program/schema.py", "heads/options.py")
STEPS, SCHEMA, OPTIONS = (runpy.run_path(str(PACKAGE / file)) for file in FILES)
TYPES = {name: of.__metadata__[0] for name, of in SCHEMA.items() if hasattr(of, "__metadata__")}
TYPES |= {"str": "const char*", "float": "double"}
COLUMNS = ("operand", "reads_all_channels", "cost")  # of steps: those that C++ needs


def type_of(field: Field[Any]) -> str:
    annotation = str(field.type).removesuffix(" | None")
    name = annotation.removeprefix("list[").removesuffix("]")
    name = TYPES.get(name, name)
    return name if annotation[-1] != "]" else f"std::vector<{name}>"


def literal(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}::{value.value}"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def enumeration(rows: Iterable[Any]) -> str:
    """An enumeration, and what ``traits`` gives of each enumerator: its name, and the other columns."""
    rows = list(rows)
    kind = type(rows[0]).__name__.replace("Traits", "Kind")
    names = [row.value if isinstance(row, Enum) else row.name for row in rows]
    columns = [] if isinstance(rows[0], Enum) else fields(rows[0])[1:]
    columns = [each for each in columns if each.name in COLUMNS or kind != "StepKind"]
    values = ([getattr(row, each.name) for each in columns] for row in rows)
    lines = (", ".join(map(literal, [name, *row])) for name, row in zip(names, values, strict=True))
    return f"""
enum class {kind} {{ {", ".join(names)} }};
constexpr int count_of({kind}) {{ return {len(rows)}; }}
struct {kind}Row {{
  const char* name;{"".join(f" {type_of(each)} {each.name};" for each in columns)}
}};
inline constexpr {kind}Row k{kind}Rows[] = {{
  {", ".join(f"{{{line}}}" for line in lines)}
}};
constexpr const {kind}Row& traits({kind} kind) {{ return k{kind}Rows[static_cast<int>(kind)]; }}
"""


def member(field: Field[Any]) -> str:
    default = field.metadata.get("native", field.default)
    optional = field.default is not MISSING or field.default_factory is not MISSING
    initial = literal(default) if isinstance(default, (bool, int, float)) else "{}"
    return f"{type_of(field)} {field.name}{f' = {initial}' if optional else ''};"


def struct(of: type) -> str:
    """A struct, and ``each_field``, which calls f(name, field) for each field."""
    return f"""
struct {of.__name__} {{
  {" ".join(map(member, fields(of)))}
}};
template <class F>
void each_field({of.__name__}& of, const F& f) {{
  {" ".join(f'f("{field.name}", of.{field.name});' for field in fields(of))}
}}
"""


def header() -> str:
    numbers = {name.title().replace("_", ""): x for name, x in SCHEMA["CONSTANTS"].items()}
    enumerations = (STEPS["Operand"], STEPS["KINDS"].values(), *SCHEMA["ENUMERATIONS"])
    structs, options = SCHEMA["STRUCTS"], OPTIONS["SamplingOptions"]
    return f"""// Written by csrc/headers.py from {", ".join(FILES)}.
#pragma once
#ifndef __CUDACC_RTC__
#include <cstdint>
#include <vector>
#endif

namespace pcf {{

{" ".join(f"constexpr int k{name} = {x};" for name, x in numbers.items())}
{"".join(map(enumeration, enumerations))}{struct(options)}
#ifndef __CUDACC_RTC__  // NVRTC, which compiles device code, has no standard library
inline constexpr char kSignature[] = "{SCHEMA["signature"](STEPS["KINDS"], *structs, options)}";
{"".join(map(struct, structs))}
#endif

}}  // namespace pcf
"""


if __name__ == "__main__":
    path = Path(sys.argv[1], "tables.h")
    if not path.exists() or path.read_text() != header():  # a new file would make everything compile again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(header())

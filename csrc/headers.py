"""Writes the C++ headers of what Python and C++ share: python headers.py FOLDER; headers.cmake does."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "pixelcnn_fast"
STEPS, SCHEMA, OPTIONS = (
    runpy.run_path(str(PACKAGE / file))
    for file in ("program/steps.py", "program/schema.py", "heads/options.py")
)
STEP_COLUMNS = ("operand", "reads_all_channels", "cost")  # those that C++ needs
BEGIN = """\
// Written by csrc/headers.py from {}.
#pragma once
"""


def type_of(field: Field[Any]) -> str:
    annotation = str(field.type).removesuffix(" | None")
    if element := re.fullmatch(r"list\[(\w+)\]", annotation):
        return f"std::vector<{element[1]}>"
    return {"str": "const char*", "float": "double", "Address": "const void*"}.get(annotation, annotation)


def literal(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}::{value.value}"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def enumeration(rows: Iterable[Any], columns: list[Field[Any]]) -> str:
    """An enumeration, and what ``traits`` gives of each enumerator: its name, and these columns."""
    rows = list(rows)
    kind = type(rows[0]).__name__.replace("Traits", "Kind")
    names = [row.value if isinstance(row, Enum) else row.name for row in rows]
    values = (
        [name, *(getattr(row, column.name) for column in columns)]
        for name, row in zip(names, rows, strict=True)
    )
    return f"""
enum class {kind} {{ {", ".join(names)} }};
struct {kind}Row {{
  const char* name;{"".join(f" {type_of(column)} {column.name};" for column in columns)}
}};
inline constexpr {kind}Row k{kind}Rows[] = {{
{"".join(f"    {{{', '.join(map(literal, row))}}},{chr(10)}" for row in values)}}};
constexpr int count_of({kind}) {{ return sizeof k{kind}Rows / sizeof *k{kind}Rows; }}
static_assert(count_of({kind}{{}}) == static_cast<int>({kind}::{names[-1]}) + 1);
constexpr const {kind}Row& traits({kind} kind) {{ return k{kind}Rows[static_cast<int>(kind)]; }}
"""


def member(field: Field[Any]) -> str:
    default = field.metadata.get("native", field.default)
    plain = isinstance(default, (bool, int, float)) and type_of(field) != "const void*"
    optional = field.default is not MISSING or field.default_factory is not MISSING
    return f"  {type_of(field)} {field.name}{f' = {literal(default)}' if plain else ' = {}' if optional else ''};\n"


def struct(of: type) -> str:
    """A struct, and ``each_field``, which calls f(name, field) for each field."""
    calls = " ".join(f'f("{field.name}", of.{field.name});' for field in fields(of))
    return f"""
struct {of.__name__} {{
{"".join(map(member, fields(of)))}}};
template <class F>
void each_field({of.__name__}& of, const F& f) {{
  {calls}
}}
"""


def constants() -> str:
    found = {name: value for name, value in SCHEMA.items() if name.isupper() and isinstance(value, int)}
    return "".join(
        f"constexpr int k{name.title().replace('_', '')} = {value};\n" for name, value in found.items()
    )


def tables() -> str:
    """What device code reads, too: NVRTC has no standard library."""
    found = [enumeration(STEPS["Operand"], [])]
    columns = [field for field in fields(STEPS["StepKind"]) if field.name in STEP_COLUMNS]
    found.append(enumeration(STEPS["KINDS"].values(), columns))
    for rows in SCHEMA["ENUMERATIONS"]:
        found.append(enumeration(rows, [] if isinstance(rows, type) else list(fields(rows[0])[1:])))
    return "".join([constants(), *found, struct(OPTIONS["SamplingOptions"])])


def structs() -> str:
    signature = SCHEMA["signature"](*SCHEMA["STRUCTS"], OPTIONS["SamplingOptions"])
    return "".join(
        [f'\ninline constexpr char kSignature[] = "{signature}";\n', *map(struct, SCHEMA["STRUCTS"])]
    )


def write(path: Path, *includes: str, text: str) -> None:
    before = BEGIN.format("pixelcnn_fast/program/schema.py, steps.py and heads/options.py")
    text = (
        f"{before}{''.join(f'#include {each}{chr(10)}' for each in includes)}\nnamespace pcf {{\n{text}\n}}\n"
    )
    if not path.exists() or path.read_text() != text:  # a new file would make everything compile again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write(folder / "tables.h", text=tables())
    write(folder / "structs.h", "<vector>", '"tables.h"', text=structs())

"""Writes the C++ headers of what Python and C++ share: python headers.py FOLDER; headers.cmake does."""

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
COLUMNS = ("operand", "reads_all_channels", "cost")  # of steps: those that C++ needs


def type_of(field: Field[Any]) -> str:
    types = {"str": "const char*", "float": "double", **SCHEMA["POINTERS"]}
    annotation = str(field.type).removesuffix(" | None")
    name = annotation.removeprefix("list[").removesuffix("]")
    name = types.get(name, name)
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
struct {kind}Row {{
  const char* name;{"".join(f" {type_of(each)} {each.name};" for each in columns)}
}};
inline constexpr {kind}Row k{kind}Rows[] = {{
  {", ".join(f"{{{line}}}" for line in lines)}
}};
constexpr int count_of({kind}) {{ return sizeof k{kind}Rows / sizeof *k{kind}Rows; }}
static_assert(count_of({kind}{{}}) == static_cast<int>({kind}::{names[-1]}) + 1);
constexpr const {kind}Row& traits({kind} kind) {{ return k{kind}Rows[static_cast<int>(kind)]; }}
"""


def member(field: Field[Any]) -> str:
    default = field.metadata.get("native", field.default)
    plain = isinstance(default, (bool, int, float)) and str(field.type) not in SCHEMA["POINTERS"]
    optional = field.default is not MISSING or field.default_factory is not MISSING
    return f"{type_of(field)} {field.name}{f' = {literal(default)}' if plain else ' = {}' if optional else ''};"


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


def constant(name: str, value: int) -> str:
    return f"constexpr int k{name.title().replace('_', '')} = {value};\n"


def tables() -> str:
    """What device code reads, too: NVRTC has no standard library."""
    found = [constant(*each) for each in SCHEMA.items() if each[0].isupper() and isinstance(each[1], int)]
    found += map(enumeration, (STEPS["Operand"], STEPS["KINDS"].values(), *SCHEMA["ENUMERATIONS"]))
    return "".join([*found, struct(OPTIONS["SamplingOptions"])])


def structs() -> str:
    signature = SCHEMA["signature"](*SCHEMA["STRUCTS"], OPTIONS["SamplingOptions"])
    return f'inline constexpr char kSignature[] = "{signature}";\n' + "".join(map(struct, SCHEMA["STRUCTS"]))


def write(path: Path, includes: str, text: str) -> None:
    begin = f"// Written by csrc/headers.py from {', '.join(FILES)}.\n#pragma once\n{includes}\n"
    text = f"{begin}namespace pcf {{\n\n{text}\n}}  // namespace pcf\n"
    if not path.exists() or path.read_text() != text:  # a new file would make everything compile again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1], "tables.h"), "", tables())
    write(
        Path(sys.argv[1], "structs.h"),
        '#include <cstdint>\n#include <vector>\n#include "tables.h"\n',
        structs(),
    )

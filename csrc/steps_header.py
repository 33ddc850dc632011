"""Writes the C++ header of the kinds of step: python steps_header.py pixelcnn_fast/program/steps.py steps.h"""

import runpy
import sys
from pathlib import Path

HEADER = """\
// The kinds of step. Written by csrc/steps_header.py from the table in pixelcnn_fast/program/steps.py.
#pragma once

namespace pcf {{

enum class StepKind {{ {kinds} }};
enum class Operand {{ {operands} }};  // constants: a scale and a shift for each channel

struct StepTraits {{
  const char* name;
  Operand operand;
  bool reads_all_channels;  // of its operand; other kinds read only the channel that they change
  int cost;  // for one channel of one pixel, in multiply-adds
}};

inline constexpr StepTraits kStepKinds[] = {{
{rows}
}};
static_assert(sizeof kStepKinds / sizeof *kStepKinds == static_cast<int>(StepKind::{last}) + 1);

constexpr const StepTraits& traits(StepKind kind) {{ return kStepKinds[static_cast<int>(kind)]; }}
constexpr Operand operand_of(StepKind kind) {{ return traits(kind).operand; }}
constexpr bool reads_all_channels(StepKind kind) {{ return traits(kind).reads_all_channels; }}
constexpr int cost(StepKind kind) {{ return traits(kind).cost; }}

}}  // namespace pcf
"""


def header(table: dict) -> str:
    rows = (
        f'    {{"{kind.name}", Operand::{kind.operand.value}, {str(kind.reads_all_channels).lower()}, {kind.cost}}},'
        for kind in table["KINDS"].values()
    )
    return HEADER.format(
        kinds=", ".join(table["KINDS"]),
        last=list(table["KINDS"])[-1],
        operands=", ".join(member.value for member in table["Operand"]),
        rows="\n".join(rows),
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    text = header(runpy.run_path(str(source)))
    if not target.exists() or target.read_text() != text:  # a new file would make everything compile again
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

"""A stage that runs cases of ``gpu.smoke`` under one of compute-sanitizer's tools."""

from __future__ import annotations

from gpu.stage import Stage
from gpu.verdicts import of_sanitizer

# The kernels are told by their name. What torch asks of the driver is not what is checked.
COMMAND = (
    "compute-sanitizer --tool {tool} --kernel-name kns=pixelcnn_fast --error-exitcode 99 --print-limit 10 "
    "--report-api-errors no --log-file {{folder}}/report.txt {{python}} -m gpu.smoke here {case}"
)


def watched(tool: str, limit: float, case: str = "") -> Stage:
    """case: '' for all of them."""
    name = f"{tool}, {case}" if case else tool
    return Stage(name, COMMAND.format(tool=tool, case=case), limit, of_sanitizer, needs="build")

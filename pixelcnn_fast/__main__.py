"""The command line: ``python -m pixelcnn_fast``, installed as ``pixelcnn-fast``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pixelcnn_fast
from pixelcnn_fast import environment
from pixelcnn_fast.bench import arguments
from pixelcnn_fast.bench.streams import complain, say
from pixelcnn_fast.cli import bench, compile, complete, demo, nll, receptive_field, sample
from pixelcnn_fast.cli.interrupts import interrupts

EPILOG = """examples:
  python -m pixelcnn_fast demo                        pictures and a comparison in out/, in 3 minutes
  python -m pixelcnn_fast demo --web                  a page that completes the digits that you begin
  python -m pixelcnn_fast sample --label 3 -n 64      64 threes from the packaged model
  python -m pixelcnn_fast sample --npz digits.npz     as arrays, too, for the next two
  python -m pixelcnn_fast complete digits.npz --known top-half    other lower halves
  python -m pixelcnn_fast nll digits.npz              their bits per dimension
  python -m pixelcnn_fast bench --batch 1,16          the samplers side by side on this machine
  python -m pixelcnn_fast receptive-field             what the packaged model's outputs see
  python -m pixelcnn_fast compile --arch 90           the CUDA kernels, ahead of time
  python -m pixelcnn_fast info                        what is installed, built and usable here

exit status: 0 done, 1 a benchmark's check failed or a model isn't causal, 2 wrong usage or input,
130 ended by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; what is finished is saved
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand -> the exit status."""
    with interrupts.handled():
        try:
            args = _parser().parse_args(argv)
            return args.run(args)
        except (ValueError, OSError, RuntimeError, ModuleNotFoundError, MemoryError) as error:
            complain(f"error: {_told(error)}")
            return 2
        except KeyboardInterrupt:
            complain("interrupted")
            return interrupts.status


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{arguments.shortened(str(error.filename))}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "a package").partition(".")[0]
        return f"{name} is not installed: pip install {name}"
    if isinstance(error, MemoryError):
        return "there is not enough memory: ask for fewer or smaller images"
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = arguments.Parser(
        prog="python -m pixelcnn_fast", description=pixelcnn_fast.__doc__, epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"pixelcnn_fast {pixelcnn_fast.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, sample, complete, nll, bench, receptive_field, compile):
        command.add_parser(commands)
    about = "say what is installed, built and usable here"
    epilog = "example:\n  python -m pixelcnn_fast info\n"
    commands.add_parser("info", help=about, description=about, epilog=epilog).set_defaults(run=_info)
    return parser


def _info(args: argparse.Namespace) -> int:
    say(environment.report())
    return 0


if __name__ == "__main__":
    sys.exit(main())

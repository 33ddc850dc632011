"""The command line: ``python -m pixelcnn_fast``, installed as ``pixelcnn-fast``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pixelcnn_fast
from pixelcnn_fast import environment
from pixelcnn_fast.bench.arguments import Parser
from pixelcnn_fast.cli import bench, demo, receptive_field, sample
from pixelcnn_fast.errors import CheckFailed

EPILOG = """examples:
  python -m pixelcnn_fast demo                        pictures and a comparison in out/, in 3 minutes
  python -m pixelcnn_fast sample --label 3 -n 64      64 threes from the packaged model
  python -m pixelcnn_fast bench --batch 1,16          the samplers side by side on this machine
  python -m pixelcnn_fast receptive-field             what the packaged model's outputs see
  python -m pixelcnn_fast info                        what is installed, built and usable here

exit status: 0 done, 1 a benchmark's check failed or a model isn't causal, 2 wrong usage or input, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand -> the exit status. argv: without the program's name; None: sys.argv."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except CheckFailed as failure:
        print(f"check failed, so no speed-up is reported: {failure}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: only what is listed above was saved", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m pixelcnn_fast", description=pixelcnn_fast.__doc__, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"pixelcnn_fast {pixelcnn_fast.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, sample, bench, receptive_field):
        command.add_parser(commands)
    about = "say what is installed, built and usable here"
    commands.add_parser("info", help=about, description=about).set_defaults(run=_info)
    return parser


def _info(args: argparse.Namespace) -> int:
    print(environment.report())
    return 0


if __name__ == "__main__":
    sys.exit(main())

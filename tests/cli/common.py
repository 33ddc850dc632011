"""How the tests of the command line call it."""

from pathlib import Path

from pixelcnn_fast.__main__ import main


def run(*arguments: object) -> int | str | None:
    """The exit status of a command, with whatever arguments."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own
        return stop.code


def sample(checkpoint: Path, folder: Path, *arguments: object) -> int | str | None:
    """``sample``, of images of 4x4, into a.png and a.npz of a folder."""
    files = ["--out", folder / "a.png", "--npz", folder / "a.npz"]
    return run("sample", "--checkpoint", checkpoint, "--size", 4, *files, *arguments)

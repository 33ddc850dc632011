"""A bad call ends at once, with status 2, one line that names the option or the cause, and nothing written."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixelcnn_fast import checkpoint
from pixelcnn_fast.bench.arguments import shortened
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import PixelRNN
from pixelcnn_fast.native import native
from tests.cli.common import run
from tests.processes import TINY
from tests.tiers import few

SMALL = "sample --checkpoint={plain} --size=2 --n=1"


class Bad(NamedTuple):
    """arguments: of the command line, where {name} is a file of ``folder``; told: what the error says."""

    arguments: list[str]
    told: str


NOT_WHOLE = ["", " ", "x", "nan", "inf", "1.5", "1e3", "٣", "²", "1_0", " 3", "0x10", "1,2"]
TOO_LARGE = ["9" * 20, "1" + "0" * 30, "9" * 5000]
NOT_COUNTS = [*NOT_WHOLE, *TOO_LARGE, "0", "-1"]
NOT_NUMBERS = ["", " ", "x", "nan", "inf", "-inf", "1e999", "٣", "1_0", "1,2", "-1"]
NOT_SIZES = ", ,x,0,0x5,5x0,-5,5x,x5,5x5x5x5,5X5,٣x٣,²,1.5,nan,5 x 5".split(",")
NOT_SIZES += ["9" * 5000]
HUGE_SIZES = ["100000x100000", "1000000000000", "1x999999999999999"]
LABELS = ["", " ", "x", "10", "-1", "٣", "²", "1.5", "1,2", "ALL", "03", "9" * 5000, "nan"]
BROKEN = {  # some of what tests/test_checkpoint.py has, and ``folder`` writes
    "missing": "no such file",
    "folder": "not a file",
    "truncated": "truncated",
    "deep json": "does not describe",
    "other keys": "keys do not fit",
    "leaking mask": "mask",
}
UNWRITABLE = ["", " ", "a\0b", "{folder}", "{text}/a", "/proc/a", "n" * 300, "n" * 250, "x/" * 3000 + "a"]


def bad(told: str, *lines: str, texts: Sequence[str] = ("",)) -> list[Bad]:
    """Calls that are told the same. lines: arguments between spaces; texts: what the last argument ends with."""
    found = [(line.split(" "), text) for line in lines for text in texts]
    return [Bad([*arguments, f"{last}{text}"], told) for (*arguments, last), text in found]


def calls() -> list[Bad]:
    found = [Bad([], "COMMAND"), Bad(["--", "--n"], "COMMAND|--n"), Bad(["info", "a\nb"], "a b")]
    found += bad("unknown", "unknown") + bad("COMMAND", "", "--unknown")
    found += bad("sam", "sam") + bad("Sample", "Sample") + bad("more", "info more") + bad("-1", "info -1")
    for command in ("demo", "sample", "bench", "receptive-field", "info"):
        found += bad("--unknown", f"{command} --unknown")
        found += bad("unrecognized" if command != "bench" else "surplus", f"{command} --unknown=3 surplus")
    found += bad("unrecognized", "sample --nn 3", "demo --qui", "receptive-field --si=4") + bad(
        "--lab", "sample --lab=3"
    )
    found += bad("--thr", "bench --thr=1") + bad("--threads", "sample --threads=1")
    for option in "checkpoint label size temperature top-k top-p seed runtime out npz".split():
        found += bad(f"--{option}", f"sample --{option}")
    found += bad("-n", "sample --n") + bad("-n", "sample -n=", "sample --n=", texts=NOT_COUNTS)
    for option in ("batch", "top-k"):
        found += bad(f"--{option}", f"sample --{option}=", texts=NOT_COUNTS)
    for option in ("repeats", "threads", "batch"):
        found += bad(
            f"--{option}", f"bench --{option}=", texts=[text for text in NOT_COUNTS if text != "1,2"]
        )
    found += bad("--batch", "bench --batch=", texts=["1,", ",1", "1,,2", "1,1", "1,0", "1;2", "1, 2"])
    found += bad(
        "--naive-pixels", "bench --naive-pixels=", texts=[text for text in NOT_COUNTS if text != "0"]
    )
    found += bad(
        "--seed", "sample --seed=", "bench --seed=", texts=[*NOT_WHOLE, *TOO_LARGE, str(2**64), "-1"]
    )
    found += bad("temperature", "sample --temperature=", texts=[*NOT_NUMBERS, "1e-39"])
    found += bad("top[-_]p", "sample --top-p=", texts=[*NOT_NUMBERS, "0", "1.01"])
    for command in ("sample", "bench", "receptive-field"):
        found += bad("--size", f"{command} --size=", texts=NOT_SIZES)
        found += bad(r"--size .*needs at least .* GiB", f"{command} --size=", texts=HUGE_SIZES)
    found += bad(r"images.* needs at least .* GiB", "sample --n=", texts=[str(10**8), str(10**12)])
    found += bad(r"1000000000 images.* needs at least", "bench --batch=1,1000000000")
    found += bad("--label", "sample --label=", texts=LABELS)
    found += bad("--label", "sample --label=all --label=1") + bad("10", "sample --label=1 --label=10")
    found += bad("leave --label out", "sample --checkpoint={plain} --label=0")
    for option in ("runtime", "precision"):
        found += bad(f"--{option}", f"sample --{option}=", texts=["", "x", "CPU", "cpu,eager", "cpu "])
    found += bad(
        "runtimes",
        "bench --runtimes=",
        texts=["", "cpu,", ",cpu", "cpu,cpu", "x", "cpu eager", "CPU", "auto"],
    )
    found += bad("bf16", f"{SMALL} --precision=bf16 --runtime=reference")
    found += bad("fp16", f"{SMALL} --precision=fp16 --runtime=cpu") + bad("tf32", f"{SMALL} --precision=tf32")
    found += bad("--weights is called --precision now", "sample --weights", "sample --weights bf16")
    found += bad("--progress", "sample --progress=yes")
    found += bad("--npz .* --out", "sample --out=a.png --npz=a.png", "sample --out=a.png --npz=./a.png")
    found += bad("name it .png", "sample --out=", texts=["a", "a.jpg", "a.png.jpg", ".png", "png"])
    found += bad("name it .png", "receptive-field --out=", texts=["a", "a.jpg", ".png"])
    found += bad("--npz|folder|/proc|long|directory", f"{SMALL} --npz=", texts=UNWRITABLE)
    cause = "--out|folder|/proc|long|directory"
    pictures = [text if text in ("", " ") else f"{text}.png" for text in UNWRITABLE]
    found += bad(cause, f"{SMALL} --out=", "receptive-field --size=2 --out=", texts=pictures)
    folders = [
        text for text in UNWRITABLE if text not in ("{folder}", "n" * 250)
    ]  # which are fine for a folder
    found += bad(cause, "demo --out=", "bench --out=", texts=folders)
    found += bad("is a folder", "demo --out={blocked}", "bench --out={blocked}") + bad(
        "is a file", "bench --out={text}"
    )
    found += bad("training", "bench training") + bad("sampling", "bench sampling sampling")
    models = ("sample --checkpoint=", "receptive-field --checkpoint=", "bench --model=")
    found += bad("--checkpoint|--model", *models, texts=["", " ", "a\0b"])
    found += bad("MNIST|long", *models, texts=["MNIST", "n" * 300])
    for broken, told in BROKEN.items():
        found += bad(told, *models, texts=[f"{{{broken}}}"])
    for other in ("{two channels}", "{many levels}"):
        found += bad("1 or 3 channels of up to 256 levels", "sample --size=2 --checkpoint=", texts=[other])
    return found + bad_shards()


def bad_shards() -> list[Bad]:
    """Calls of ``sample`` with --shards, and the options that go with it."""
    found: list[Bad] = []
    for option in ("shard-size=3", "format=npz"):
        found += bad(f"--{option.partition('=')[0]} needs --shards FOLDER", f"{SMALL} --{option}")
    for option in ("out=a.png", "npz=a", "gif=a.gif", "save-noise=a", "noise=a", "json"):
        name = option.partition("=")[0]
        found += bad(f"--{name} does not go with --shards FOLDER", f"{SMALL} --shards=a --{option}")
    found += bad("--shard-size", f"{SMALL} --shards=a --shard-size=", texts=NOT_COUNTS)
    found += bad("--format", f"{SMALL} --shards=a --format=", texts=["", "NPZ", "png", "npz "])
    for option in ("--shards", "--shard-size", "--format"):
        found += bad(option, f"sample {option}")
    found += bad("--shards", f"{SMALL} --shards=", texts=["", " ", "a\0b"])
    unwritable = {
        "{text}/a": "Not a directory",
        "/proc/a": "/proc",
        "n" * 300: "too long",
        "{text}": "is a file|exists",
    }
    for text, told in {**unwritable, "{shards of another}": "manifest.json is missing"}.items():
        found += bad(told, f"{SMALL} --shards=", texts=[text])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders that calls name: checkpoints that are broken in many ways, and what is in the way."""
    folder = tmp_path_factory.mktemp("files")
    model = random_model(**TINY)
    plain = folder / "plain"
    checkpoint.save(model, plain)
    checkpoint.save(random_model(**{**TINY, "input_channels": 2}), folder / "two channels")
    checkpoint.save(PixelRNN("row_lstm", 1, 2, 1, kernel_size=1, levels=300), folder / "many levels")
    for blocking in ("folder", "folder.png", "blocked/digits.png", "blocked/sampling.json"):
        (folder / blocking).mkdir(parents=True)
    (folder / "shards of another").mkdir()
    (folder / "shards of another/shard-000000.npz").touch()
    (folder / "truncated").write_bytes(plain.read_bytes()[:-9])
    (folder / "text").write_text("no checkpoint\n")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    leaking = {key: torch.ones_like(x) for key, x in tensors.items() if key.endswith(".mask")}

    def save(name: str, changed: dict[str, Tensor], config: str = json.dumps(model.config)) -> None:
        save_file({**tensors, **changed}, folder / name, {"config": config, "model": "PixelCNN"})

    save("deep json", {}, "[" * 100_000)
    save("other keys", {"surplus": torch.zeros(1)})
    save("leaking mask", leaking)
    return folder


class Names(dict):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, name: str) -> str:
        return str(self._folder / name)


BAD = calls()


def test_long_texts_are_shortened_and_stay_what_they_are() -> None:
    assert shortened("x" * 40) == repr("x" * 40)
    assert shortened("x" * 39 + "\n\n") == f"'{'x' * 30}'... (41 characters)"


def test_there_are_many() -> None:
    assert len({tuple(bad.arguments) for bad in BAD}) == len(BAD) >= 400


@pytest.mark.parametrize(
    "bad", BAD, ids=lambda bad: " ".join(bad.arguments)[:60].encode("unicode_escape").decode()
)
def test_a_bad_call(bad: Bad, folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    assert run(*(text.format_map(Names(folder)) for text in bad.arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and len(captured.err) < 6500
    assert re.search(bad.told, captured.err)
    assert not list(tmp_path.iterdir()) and sorted(folder.rglob("*")) == before


GOOD = [
    "sample --size=2 --n=1 --label=0 --batch=1000000000000 --out=no.folder/yet/a.PNG",
    "sample --size=1x3 --n=01 --label=9 --label=9 --seed=18446744073709551615 --top-k=1000000000000",
    "sample --size=2 --n=1 --label=all --seed=0 --temperature=0 --top-p=1",
    "sample --size=2 --n=+2 --label 0 --temperature=1e300 --top-p=1e-300 --runtime=eager --precision=bf16",
    "sample --n 1 --n 2 --size 2 --label=3 --npz=images --out=-.png",
    "sample -n 3 --size=2 --label=3 --shards=jobs/a --shard-size=2 --format=safetensors",
    "receptive-field --size 1",
    "receptive-field --size=3x1 --out=maps/a.png",
    "bench sampling --size=1 --batch=2,1 --repeats=1 --naive-pixels=1000000000000 --runtimes=cpu-bf16,eager,reference",
    "bench --model=mnist --size=2 --batch=1 --repeats=1 --runtimes=eager --seed=18446744073709551615 --out=.",
    "info",
    "sample --help",
    "--version",
]


@pytest.mark.parametrize("line", few(GOOD, 2))
def test_an_unusual_call_that_is_fine(line: str, tmp_path: Path, monkeypatch, capsys) -> None:
    if "cpu-bf16" in line and native() is None:
        pytest.skip("no compiled sampler")
    monkeypatch.chdir(tmp_path)
    assert run(*line.split()) == 0
    captured = capsys.readouterr()
    assert captured.out and captured.err == ""
    assert not list(tmp_path.rglob("*.unfinished"))

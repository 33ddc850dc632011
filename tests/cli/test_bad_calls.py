"""A bad call ends at once, with status 2, one line that names the option or the cause, and nothing written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from pixelcnn_fast import checkpoint
from pixelcnn_fast.__main__ import main
from pixelcnn_fast.bench.arguments import shortened
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import PixelRNN
from pixelcnn_fast.native import native
from tests.tiers import few

TINY: dict[str, Any] = dict(input_channels=1, hidden_channels=6, n_residual=1, kernel_size=3)
WEIGHT = "blocks.0.conv1.weight"


class Bad(NamedTuple):
    """arguments: of the command line, where {name} is a file of ``folder``; told: what the error says."""

    arguments: list[str]
    told: str


NOT_WHOLE = ["", " ", "x", "nan", "inf", "1.5", "1e3", "٣", "²", "1_0", " 3", "0x10", "1,2"]
TOO_LARGE = ["9" * 20, "1" + "0" * 30, "9" * 5000]
NOT_COUNTS = [*NOT_WHOLE, *TOO_LARGE, "0", "-1"]
NOT_NUMBERS = ["", " ", "x", "nan", "inf", "-inf", "1e999", "٣", "1_0", "1,2", "-1"]
NOT_SIZES = [
    "",
    " ",
    "x",
    "0",
    "0x5",
    "5x0",
    "-5",
    "5x",
    "x5",
    "5x5x5",
    "5X5",
    "٣x٣",
    "²",
    "1.5",
    "nan",
    "5 x 5",
    "9" * 5000,
]
HUGE_SIZES = ["100000x100000", "1000000000000", "1x999999999999999"]
LABELS = ["", " ", "x", "10", "-1", "٣", "²", "1.5", "1,2", "ALL", "03", "9" * 5000, "nan"]
BROKEN = {
    "missing": "no such file",
    "folder": "not a file",
    "empty": "not a safetensors file",
    "truncated": "truncated",
    "text": "not a safetensors file",
    "pickled": "not a safetensors file",
    "no config": "has no 'config'",
    "bad json": "does not describe",
    "deep json": "does not describe",
    "list config": "does not describe",
    "unknown setting": "does not describe",
    "text setting": "does not describe",
    "negative setting": "config",
    "zero setting": "config",
    "huge setting": "does not describe",
    "null setting": "config",
    "other model": "its model is 'Other'",
    "other sizes": "its config",
    "other keys": "keys do not fit",
    "no tensors": "no tensors",
    "nan": "NaN",
    "infinite": "NaN or infinite",
    "leaking mask": "mask",
    "integers": "its config",
}
UNWRITABLE = ["", " ", "a\0b", "{folder}", "{text}/a", "/proc/a", "n" * 300, "n" * 250, "x/" * 3000 + "a"]


def calls() -> list[Bad]:
    found = [
        Bad([], "COMMAND"),
        Bad(["unknown"], "unknown"),
        Bad([""], "COMMAND"),
        Bad(["--unknown"], "COMMAND"),
    ]
    found += [Bad(["sam"], "sam"), Bad(["Sample"], "Sample"), Bad(["info", "more"], "more")]
    found += [Bad(["--", "--n"], "COMMAND|--n"), Bad(["info", "-1"], "-1"), Bad(["info", "a\nb"], "a b")]
    for command in ("demo", "sample", "bench", "receptive-field", "info"):
        found.append(Bad([command, "--unknown"], "--unknown"))
        found.append(
            Bad([command, "--unknown=3", "surplus"], "unrecognized" if command != "bench" else "surplus")
        )
    for command, short in [
        ("demo", "--qui"),
        ("sample", "--lab=3"),
        ("bench", "--thr=1"),
        ("receptive-field", "--si=4"),
    ]:
        found.append(Bad([command, short], short))
    for option in (
        "checkpoint",
        "label",
        "n",
        "size",
        "temperature",
        "top-k",
        "top-p",
        "seed",
        "runtime",
        "out",
        "npz",
    ):
        found.append(Bad(["sample", f"--{option}"], f"-{option}"))
    for option in ("n", "batch", "top-k"):
        found += [Bad(["sample", f"--{option}={text}"], f"-{option}") for text in NOT_COUNTS]
    found += [Bad(["sample", f"-n={text}"], "-n") for text in NOT_COUNTS]
    for option in ("repeats", "threads", "batch"):
        found += [Bad(["bench", f"--{option}={text}"], f"--{option}") for text in NOT_COUNTS if text != "1,2"]
    for text in ("1,", ",1", "1,,2", "1,1", "1,0", "1;2", "1, 2"):
        found.append(Bad(["bench", f"--batch={text}"], "--batch"))
    found += [Bad(["bench", f"--naive-pixels={text}"], "--naive-pixels") for text in NOT_COUNTS if text != "0"]
    for command in ("sample", "bench"):
        for text in [*NOT_WHOLE, *TOO_LARGE, str(2**64), "-1"]:
            found.append(Bad([command, f"--seed={text}"], "--seed"))
    for option in ("temperature", "top-p"):
        name = option.replace("-", "[-_]")
        found += [Bad(["sample", f"--{option}={text}"], name) for text in NOT_NUMBERS]
    found += [Bad(["sample", "--temperature=1e-39"], "temperature"), Bad(["sample", "--top-p=0"], "top.p")]
    found += [Bad(["sample", "--top-p=1.01"], "top.p"), Bad(["sample", "--threads=1"], "--threads")]
    for command in ("sample", "bench", "receptive-field"):
        found += [Bad([command, f"--size={text}"], "--size") for text in NOT_SIZES]
        found += [Bad([command, f"--size={text}"], r"--size .*needs at least .* GiB") for text in HUGE_SIZES]
    found += [Bad(["sample", f"--n={n}"], r"images.* needs at least .* GiB") for n in (10**8, 10**12)]
    found.append(Bad(["bench", "--batch=1,1000000000"], r"1000000000 images.* needs at least"))
    found += [Bad(["sample", f"--label={text}"], "--label") for text in LABELS]
    found += [
        Bad(["sample", "--label=all", "--label=1"], "--label"),
        Bad(["sample", "--label=1", "--label=10"], "10"),
    ]
    found.append(Bad(["sample", "--checkpoint={plain}", "--label=0"], "leave --label out"))
    for text in ("", "x", "CPU", "cpu,eager", "cpu "):
        found += [
            Bad(["sample", f"--runtime={text}"], "--runtime"),
            Bad(["sample", f"--precision={text}"], "--precision"),
        ]
    for text in ("", "cpu,", ",cpu", "cpu,cpu", "x", "cpu eager", "CPU", "auto"):
        found.append(Bad(["bench", f"--runtimes={text}"], "runtimes"))
    found += [Bad(["sample", "--precision=bf16", "--runtime=reference", "--size=2"], "bf16")]
    found += [Bad(["sample", "--precision=fp16", "--runtime=cpu", "--size=2"], "fp16")]
    found += [Bad(["sample", "--precision=tf32", "--size=2"], "tf32")]
    found += [Bad(["sample", "--weights"], "--precision"), Bad(["sample", "--progress=yes"], "--progress")]
    found += [
        Bad(["sample", "--out=a.png", "--npz=a.png"], "--npz"),
        Bad(["sample", "--out=a.png", "--npz=./a.png"], "--npz"),
    ]
    found += [
        Bad(["sample", f"--out={text}"], "name it .png") for text in ("a", "a.jpg", "a.png.jpg", ".png", "png")
    ]
    found += [Bad(["receptive-field", f"--out={text}"], "name it .png") for text in ("a", "a.jpg", ".png")]
    for text in UNWRITABLE:
        cause = "--npz|folder|/proc|long|directory"
        found.append(Bad(["sample", "--size=2", "--n=1", f"--npz={text}"], cause))
        cause = "--out|folder|/proc|long|directory"
        for start in (["sample", "--size=2", "--n=1"], ["receptive-field", "--size=2"]):
            found.append(Bad([*start, f"--out={text}" + ".png" * (not text.isspace() and text != "")], cause))
        if text not in ("{folder}", "n" * 250):  # which are fine for a folder
            found += [Bad([command, f"--out={text}"], cause) for command in ("demo", "bench")]
    found += [Bad([command, "--out={blocked}"], "is a folder") for command in ("demo", "bench")]
    found += [Bad(["bench", "training"], "training"), Bad(["bench", "sampling", "sampling"], "sampling")]
    for option, command in [
        ("--checkpoint", "sample"),
        ("--checkpoint", "receptive-field"),
        ("--model", "bench"),
    ]:
        found += [Bad([command, f"{option}={text}"], option) for text in ("", " ", "a\0b")]
        found += [Bad([command, f"{option}={text}"], "MNIST|long") for text in ("MNIST", "n" * 300)]
    for broken, told in BROKEN.items():
        found.append(Bad(["sample", f"--checkpoint={{{broken}}}", "--size=2", "--out=new/a.png"], told))
    some = list(BROKEN.items())
    found += [Bad(["receptive-field", f"--checkpoint={{{broken}}}"], told) for broken, told in some[::3]]
    found += [Bad(["bench", f"--model={{{broken}}}", "--out=new"], told) for broken, told in some[1::3]]
    for other in ("two channels", "many levels"):
        found.append(
            Bad(["sample", f"--checkpoint={{{other}}}", "--size=2"], "1 or 3 channels of up to 256 levels")
        )
    return found + bad_shards()


def bad_shards() -> list[Bad]:
    """Calls of ``sample`` with --shards, and the options that go with it."""
    start = ["sample", "--size=2", "-n=1"]
    found: list[Bad] = []
    for option in ("shard-size=3", "format=npz"):
        found.append(Bad([*start, f"--{option}"], f"--{option.partition('=')[0]} needs --shards FOLDER"))
    for option in ("out=a.png", "npz=a"):
        name = option.partition("=")[0]
        found.append(Bad([*start, "--shards=a", f"--{option}"], f"--{name} does not go with --shards FOLDER"))
    found += [Bad([*start, "--shards=a", f"--shard-size={text}"], "--shard-size") for text in NOT_COUNTS]
    found += [
        Bad([*start, "--shards=a", f"--format={text}"], "--format") for text in ("", "NPZ", "png", "npz ")
    ]
    found += [Bad(["sample", option], option) for option in ("--shards", "--shard-size", "--format")]
    found += [Bad([*start, f"--shards={text}"], "--shards") for text in ("", " ", "a\0b")]
    unwritable = [("{text}/a", "Not a directory"), ("/proc/a", "/proc"), ("n" * 300, "too long")]
    found += [
        Bad([*start, f"--shards={text}"], told) for text, told in [*unwritable, ("{text}", "is a file|exists")]
    ]
    found.append(Bad([*start, "--shards={shards of another}"], "manifest.json is missing"))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders that calls name: checkpoints that are broken in many ways, and what is in the way."""
    folder = tmp_path_factory.mktemp("files")
    model = random_model(**TINY)
    plain = folder / "plain"
    checkpoint.save(model, plain)
    whole = plain.read_bytes()
    checkpoint.save(random_model(**{**TINY, "input_channels": 2}), folder / "two channels")
    checkpoint.save(PixelRNN("row_lstm", 1, 2, 1, kernel_size=1, levels=300), folder / "many levels")
    for blocking in ("folder", "folder.png", "blocked/digits.png", "blocked/sampling.json"):
        (folder / blocking).mkdir(parents=True)
    (folder / "shards of another").mkdir()
    (folder / "shards of another/shard-000000.npz").touch()
    (folder / "empty").write_bytes(b"")
    (folder / "truncated").write_bytes(whole[:-9])
    (folder / "text").write_text("no checkpoint\n")
    torch.save(model.state_dict(), folder / "pickled")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    config = model.config

    def save(name: str, config: object = config, kind: str = "PixelCNN", changed: Any = None) -> None:
        text = config if isinstance(config, str) else json.dumps(config)
        save_file({**tensors, **(changed or {})}, folder / name, {"config": text, "model": kind})

    save_file(tensors, folder / "no config")
    save("bad json", "{")
    save("deep json", "[" * 100_000)
    save("list config", [1, 2])
    save("unknown setting", {**config, "colour": 3})
    save("text setting", {**config, "hidden_channels": "six"})
    save("negative setting", {**config, "hidden_channels": -6})
    save("zero setting", {**config, "kernel_size": 0})
    save("huge setting", {**config, "hidden_channels": 10**30})
    save("null setting", {**config, "hidden_channels": None})
    save("other model", kind="Other")
    save("other sizes", {**config, "hidden_channels": 5})
    save("other keys", changed={"surplus": torch.zeros(1)})
    save_file({}, folder / "no tensors", {"config": json.dumps(config)})
    save("nan", changed={WEIGHT: tensors[WEIGHT] * float("nan")})
    save("infinite", changed={WEIGHT: tensors[WEIGHT] / 0})
    save(
        "leaking mask", changed={key: torch.ones_like(x) for key, x in tensors.items() if key.endswith(".mask")}
    )
    save("integers", changed={WEIGHT: tensors[WEIGHT].int()})
    return folder


def named(text: str, folder: Path) -> str:
    return text.format_map(Names(folder))


class Names(dict):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, name: str) -> str:
        return str(self._folder / name)


def status_of(arguments: list[str]) -> int | str | None:
    try:
        return main(arguments)
    except SystemExit as stop:  # argparse's own
        return stop.code


BAD = calls()


def test_long_texts_are_shortened_and_stay_what_they_are() -> None:
    assert shortened("x" * 40) == repr("x" * 40)
    assert shortened("x" * 39 + "\n\n") == f"'{'x' * 30}'... (41 characters)"


def test_there_are_many() -> None:
    assert len({tuple(bad.arguments) for bad in BAD}) == len(BAD) >= 200


@pytest.mark.parametrize(
    "bad", BAD, ids=lambda bad: " ".join(bad.arguments)[:60].encode("unicode_escape").decode()
)
def test_a_bad_call(bad: Bad, folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    assert status_of([named(text, folder) for text in bad.arguments]) == 2
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
    assert status_of(line.split()) == 0
    captured = capsys.readouterr()
    assert captured.out and captured.err == ""
    assert not list(tmp_path.rglob("*.unfinished"))

"""The command line as a user meets it: files, exit statuses, one-line errors, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pixelcnn_fast import Sampler, checkpoint
from pixelcnn_fast.__main__ import main
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import PixelRNN
from pixelcnn_fast.models.pixel_rnn import KINDS, Kind
from pixelcnn_fast.noise import noise_of
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.job import Job

TINY: dict[str, Any] = dict(input_channels=1, hidden_channels=6, n_residual=1, kernel_size=3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "plain.safetensors"
    checkpoint.save(random_model(**TINY), path)
    return path


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "conditional.safetensors"
    checkpoint.save(random_model(n_classes=3, **TINY), path)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_sample_writes_what_the_sampler_draws(conditional: Path, tmp_path: Path, capsys) -> None:
    png, npz = tmp_path / "new folder" / "a.png", tmp_path / "a"
    options = ["--checkpoint", conditional, "--size", "5x4", "--seed", 7, "--temperature", 0.8, "--top-k", 9]
    assert run("sample", *options, "--label", 2, "--label", 0, "-n", 3, "--out", png, "--npz", npz) == 0
    assert "6 images" in capsys.readouterr().out

    labels = torch.tensor([2, 0, 2, 0, 2, 0])
    sampler = Sampler(checkpoint.load(conditional), (1, 5, 4))
    expected = sampler.sample(
        6, labels, 0.8, noise=noise_of(7, range(6), (1, 5, 4)), runtime="reference", top_k=9
    )
    with np.load(npz) as saved:
        assert np.array_equal(saved["images"], expected.numpy()) and saved["top_k"] == 9
        assert (
            saved["labels"].tolist() == labels.tolist() and saved["seed"] == 7 and saved["temperature"] == 0.8
        )
    picture = (imread(png)[..., 0] * 255).round()
    scale = 11  # 56 screen pixels or fewer for 5
    assert picture.shape == ((3 * 6 - 1) * scale, (2 * 5 - 1) * scale)  # a column for each label
    assert np.array_equal(picture[: 5 * scale : scale, : 4 * scale : scale], expected[0, 0].numpy())


def test_sample_without_classes(plain: Path, tmp_path: Path) -> None:
    npz = tmp_path / "a.npz"
    out = tmp_path / "a.png"
    assert run("sample", "--checkpoint", plain, "--size", 4, "-n", 5, "--out", out, "--npz", npz) == 0
    with np.load(npz) as saved:
        assert saved["images"].shape == (5, 1, 4, 4) and "labels" not in saved


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_rnn_is_served_as_the_others(kind: Kind, tmp_path: Path, capsys) -> None:
    settings: dict[str, Any] = dict(input_channels=1, hidden_channels=4, n_layers=1, kernel_size=3, levels=4)
    path, npz = tmp_path / "rnn.safetensors", tmp_path / "a.npz"
    checkpoint.save(random_model(family=PixelRNN, kind=kind, **settings), path)
    small = ["--checkpoint", path, "--size", "5x4"]
    assert run("sample", *small, "-n", 3, "--seed", 7, "--out", tmp_path / "a.png", "--npz", npz) == 0
    sampler = Sampler(checkpoint.load(path), (1, 5, 4))
    expected = sampler.sample(3, noise=noise_of(7, range(3), (1, 5, 4)), runtime="reference")
    with np.load(npz) as saved:
        assert np.array_equal(saved["images"], expected.numpy())
    assert run("receptive-field", *small) == 0
    assert "causal" in capsys.readouterr().out
    bench = ["--model", path, "--size", "5x4", "--batch", 2, "--repeats", 1, "--naive-pixels", 0]
    assert run("bench", "sampling", *bench, "--out", tmp_path) == 0
    assert "identical" in capsys.readouterr().out


def test_sample_from_the_packaged_model(tmp_path: Path) -> None:
    npz = tmp_path / "a.npz"
    assert run("sample", "-n", 1, "--size", "6x28", "--out", tmp_path / "a.png", "--npz", npz) == 0
    with np.load(npz) as saved:
        assert saved["images"].shape == (10, 1, 6, 28) and saved["labels"].tolist() == list(range(10))
        assert saved["images"].any()  # not the empty canvas


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--checkpoint", "missing.safetensors"], "missing.safetensors: no such file"),
        (["sample", "--label", "10"], "--label 10: expected 0...9"),
        (["sample", "--label", "all", "--label", "1"], "--label all"),
        (["sample", "--temperature", "-1"], "temperature is -1.0"),
        (["sample", "--out", "a.jpg"], "name it .png"),
        (["sample", "-n", "0"], "expected 1 or more"),
        (["sample", "--size", "28x"], "28x28"),
        (["sample", "--weights", "bf16"], "--weights is called --precision now"),
        (["sample", "--nn", "3"], "unrecognized arguments"),
        (["bench", "--runtimes", "cpu,magic"], "choose from reference, eager, cpu, cpu-bf16"),
        (["bench", "--batch", "1,x"], "--batch"),
        (["bench", "--out", __file__], "is a file"),
        ([], "COMMAND"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    status: int | str | None
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err
    assert not list(tmp_path.iterdir())


def test_label_for_a_model_without_classes(plain: Path, tmp_path: Path, capsys) -> None:
    assert run("sample", "--checkpoint", plain, "--label", 1, "--out", tmp_path / "a.png") == 2
    assert "leave --label out" in capsys.readouterr().err


def test_ctrl_c_saves_what_is_finished(plain: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    whole = EagerRuntime.run
    batches: list[Job] = []

    def interrupted(self: EagerRuntime, job: Job) -> None:
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(job)
        whole(self, job)

    monkeypatch.setattr(EagerRuntime, "run", interrupted)
    npz, png = tmp_path / "a.npz", tmp_path / "a.png"
    options = ["--checkpoint", plain, "--size", 4, "-n", 9, "--batch", 2, "--runtime", "eager"]
    assert run("sample", *options, "--out", png, "--npz", npz) == 130
    captured = capsys.readouterr()
    assert "4 of 9 images are finished" in captured.err and "4 images" in captured.out and png.exists()
    with np.load(npz) as saved:
        assert saved["images"].shape == (4, 1, 4, 4)
        monkeypatch.undo()
        expected = Sampler(checkpoint.load(plain), (1, 4, 4)).sample(9, noise=noise_of(0, range(9), (1, 4, 4)))
        assert np.array_equal(saved["images"], expected[:4].numpy())


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_a_real_ctrl_c_ends_with_130(plain: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pixelcnn_fast",
        "sample",
        "--checkpoint",
        plain,
        "--size",
        "64x64",
        "-n",
        "10000",
    ]
    command += ["--runtime", "eager", "--batch", "1", "--out", tmp_path / "a.png", "--progress"]
    with subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A shell's background job ignores Ctrl-C, and passes that on: these tests may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        while process.stderr.read(1) not in (b"%", b""):  # until the progress bar shows that it is sampling
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted: " in err and b"Traceback" not in err


def test_help_of_every_command_shows_an_example(capsys) -> None:
    for command in ([], ["demo"], ["sample"], ["bench"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        assert "python -m pixelcnn_fast" in capsys.readouterr().out.partition("example")[2]


def test_info(capsys) -> None:
    assert run("info") == 0
    assert "compiled module" in capsys.readouterr().out


def test_demo(tmp_path: Path, monkeypatch, capsys) -> None:
    """The demo's steps, on smaller images."""
    monkeypatch.setattr("pixelcnn_fast.cli.demo.SIZE", 7)
    monkeypatch.setattr("pixelcnn_fast.cli.demo.ROWS", 2)
    assert run("demo", "--out", tmp_path / "out", "--quick") == 0
    out = capsys.readouterr().out
    files = ["digits.png", "comparison.md", "comparison.json", "comparison.png"]
    assert all(str(tmp_path / "out" / name) in out and (tmp_path / "out" / name).exists() for name in files)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    [comparison] = found["comparisons"]
    texts = [contestant["check"]["text"] for contestant in comparison["contestants"]]
    assert texts and all(text == "identical" or text.endswith("within rounding") for text in texts)
    assert "extrapolated from 8 of 49 pixels" in out

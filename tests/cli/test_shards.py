"""``sample --shards``, alone and as torchrun starts it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch.distributed.run import get_args_parser

from pixelcnn_fast import Sampler, checkpoint
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.noise import noise_of
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.job import Job
from tests.cli.common import run
from tests.tiers import thorough


def torchrun(*options: object) -> list[str]:
    """The command line of ``sample`` on two processes."""
    start = "-m torch.distributed.run --standalone --nproc-per-node 2 -m pixelcnn_fast sample"
    return [sys.executable, *start.split(), *map(str, options)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@thorough
def test_alone_and_under_torchrun_it_writes_the_same(conditional: Path, tmp_path: Path, capfd) -> None:
    options = ["-n", 4, "--checkpoint", conditional, "--label", 2, "--label", 0, "--size", "5x4", "--seed", 7]
    options += ["--temperature", 0.8, "--top-k", 9, "--top-p", 0.9, "--runtime", "eager", "--batch", 2]
    options += ["--precision", "bf16", "--shard-size", 3, "--format", "npz", "--progress"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert run("sample", *options, "--shards", alone) == 0
    captured = capfd.readouterr()
    assert f"{alone}: 8 images in 3 files" in captured.out and str(alone / "preview.png") in captured.out
    assert " 8/8 " in captured.err

    subprocess.run(torchrun(*options, "--shards", shared), check=True, timeout=120)
    assert files(shared) == files(alone)
    captured = capfd.readouterr()
    assert captured.out.count("8 images in 3 files") == 1 and " 8/8 " in captured.err

    sampler = Sampler(checkpoint.load(conditional), (1, 5, 4), precision="bf16")
    labels, noise = torch.tensor([2, 0] * 4), noise_of(7, range(8), sampler.noise_shape)
    expected = sampler.sample(8, labels, 0.8, noise=noise, top_k=9, top_p=0.9, runtime="eager")
    read = [np.load(alone / f"shard-{shard:06}.npz") for shard in range(3)]
    assert np.array_equal(np.concatenate([each["images"] for each in read]), expected.numpy())
    assert np.concatenate([each["labels"] for each in read]).tolist() == labels.tolist()
    picture = (imread(alone / "preview.png")[..., 0] * 255).round()
    assert np.array_equal(picture[: 5 * 11 : 11, : 4 * 11 : 11], expected[0, 0].numpy())  # 11 times as large


def test_the_first_images_are_those_of_an_ordinary_run(conditional: Path, tmp_path: Path, capsys) -> None:
    """And seen in a picture, in columns of one class."""
    model = ["--checkpoint", conditional, "--size", "4x5", "--seed", 7, "--temperature", 0.8, "--top-k", 9]
    assert run("sample", *model, "-n", 4, "--shards", tmp_path / "shards", "--shard-size", 10) == 0
    assert run("sample", *model, "--n", 5, "--out", tmp_path / "a.png", "--npz", tmp_path / "a.npz") == 0
    with np.load(tmp_path / "shards" / "shard-000000.npz") as many, np.load(tmp_path / "a.npz") as few:
        assert np.array_equal(many["images"], few["images"][:10])
        assert np.array_equal(many["labels"], few["labels"][:10])
        first = many["images"][0, 0]
    preview = tmp_path / "shards" / "preview.png"
    picture = (imread(preview)[..., 0] * 255).round()
    enlarged = next(k for k in range(1, 99) if np.array_equal(picture[: 4 * k : k, : 5 * k : k], first))
    assert str(preview) in capsys.readouterr().out and picture.shape[1] // (5 * enlarged) == 3


@pytest.mark.parametrize(("n", "across", "down"), [(5, 3, 2), (100, 8, 8)])
def test_images_of_one_class_are_seen_in_a_square_but_no_more_than_some_rows(
    n: int, across: int, down: int, conditional: Path, tmp_path: Path
) -> None:
    options = ["--checkpoint", conditional, "--label", 1, "--size", 2, "-n", n]
    assert run("sample", *options, "--shards", tmp_path) == 0
    height, width = imread(tmp_path / "preview.png").shape[:2]
    assert height * (3 * across - 1) == width * (3 * down - 1)  # each of two pixels, and one between them


def test_runtime_and_batch_are_those_that_were_asked_for(conditional, tmp_path, monkeypatch, capsys):
    whole, images = EagerRuntime.run, []

    def counted(self: EagerRuntime, job: Job) -> None:
        images.append(len(job.values))
        whole(self, job)

    monkeypatch.setattr(EagerRuntime, "run", counted)
    options = ["--checkpoint", conditional, "--label", 1, "--size", 2, "-n", 5, "--runtime", "eager"]
    assert run("sample", *options, "--batch", 2, "--progress", "--shards", tmp_path) == 0
    assert [n for n in images if n] == [2, 2, 1] and " 5/5 " in capsys.readouterr().err


def test_images_of_two_channels_have_no_preview(tmp_path: Path, capsys) -> None:
    path, folder = tmp_path / "two.safetensors", tmp_path / "shards"
    checkpoint.save(random_model(input_channels=2, hidden_channels=6, n_residual=1, kernel_size=3), path)
    options = ["--checkpoint", path, "--size", 3, "-n", 3, "--shard-size", 2, "--format", "safetensors"]
    assert run("sample", *options, "--shards", folder) == 0
    shards = [f"shard-{number:06}.safetensors" for number in range(2)]
    assert sorted(files(folder)) == ["manifest.json", *shards]
    assert "3 images in 2 files" in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_speaks(rank, conditional, tmp_path, monkeypatch, capsys):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("4 of 9 images are finished")

    arguments = ["sample", "--checkpoint", conditional, "--size", 3, "--shards", tmp_path]
    monkeypatch.setitem(os.environ, "RANK", str(rank))
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setattr("pixelcnn_fast.distributed.sample", stopped)
    assert run(*arguments) == 130
    assert ("stopped: 4 of 9 images are finished" in capsys.readouterr().err) == (rank == 0)
    monkeypatch.setattr("pixelcnn_fast.distributed.sample", lambda *_, **__: None)
    monkeypatch.setattr("pixelcnn_fast.cli.shards._preview", lambda *_: [])
    assert run(*arguments) == 0
    assert ("48 images in 1 files" in capsys.readouterr().out) == (rank == 0)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@thorough
def test_ctrl_c_under_torchrun_keeps_what_is_finished(tmp_path: Path) -> None:
    options = ["-n", 1000, "--size", "28x28", "--runtime", "eager", "--batch", 1, "--shard-size", 1]
    with subprocess.Popen(
        torchrun(*options, "--shards", tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and passes that on: these tests may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        limit = time.monotonic() + 120
        while len(list(tmp_path.glob("shard-*.npz"))) < 3 and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    found = re.search(r"stopped: (\d+) of 10000 images are finished, in .*; start it again", err)
    assert process.returncode and found and "images in" not in out
    names = {path.name for path in tmp_path.iterdir()}
    assert 3 <= int(found[1]) <= len(names) - 1 and not any(name.endswith(".unfinished") for name in names)


def test_every_option_passes_through_torchruns_own_parser(capsys) -> None:
    assert run("sample", "--help") == 0
    text = capsys.readouterr().out.partition("examples:")[0]
    options = sorted(set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", text)) - {"-h", "--help"})
    assert "-n" in options and "--shard-size" in options and "--n" not in options and len(options) > 15
    for option in options:
        given = ["sample", option, "1"]
        parsed = get_args_parser().parse_args(["--nproc-per-node", "2", "-m", "pixelcnn_fast", *given])
        assert parsed.training_script_args == given and parsed.nproc_per_node == "2"


def test_processes_that_would_draw_the_same_are_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "8")
    assert run("sample", "-n", 1, "--out", tmp_path / "a.png") == 2
    assert "8 processes would draw the same images" in capsys.readouterr().err

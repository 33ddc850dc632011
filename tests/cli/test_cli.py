"""The command line as a user meets it: files, exit statuses, one-line errors, Ctrl-C."""

import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pixelcnn_fast import Sampler, checkpoint
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import Model, PixelRNN
from pixelcnn_fast.models.pixel_rnn import KINDS, Kind
from pixelcnn_fast.noise import noise_of
from pixelcnn_fast.pictures import image_grid
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.job import Job
from tests.cli.common import run, sample
from tests.processes import TINY
from tests.tiers import few, thorough

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no disk that is always full")
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")


def has_both(folder: Path) -> bool:
    return (folder / "a.png").exists() and (folder / "a.npz").exists()


def test_sample_writes_what_the_sampler_draws(conditional: Path, tmp_path: Path, capsys) -> None:
    png, npz = tmp_path / "new folder" / "a.png", tmp_path / "a"
    options = ["--checkpoint", conditional, "--size", "5x4", "--seed", 7, "--temperature", 0.8, "--top-k", 9]
    assert run("sample", *options, "--label", 2, "--label", 0, "-n", 3, "--out", png, "--npz", npz) == 0
    assert "6 images" in capsys.readouterr().out

    labels = torch.tensor([2, 0, 2, 0, 2, 0])
    sampler = Sampler(checkpoint.load(conditional), (1, 5, 4))
    noise = noise_of(7, range(6), (1, 5, 4))
    expected = sampler.sample(6, labels, 0.8, noise=noise, runtime="reference", top_k=9)
    with np.load(npz) as saved:
        assert np.array_equal(saved["images"], expected.numpy()) and saved["top_k"] == 9
        assert saved["checkpoint"] == str(conditional) and "top_p" not in saved
        assert saved["labels"].tolist() == labels.tolist()
        assert saved["seed"] == 7 and saved["temperature"] == 0.8
    picture = (imread(png)[..., 0] * 255).round()
    scale = 11  # 56 screen pixels or fewer for 5
    assert picture.shape == ((3 * 6 - 1) * scale, (2 * 5 - 1) * scale)  # a column for each label
    assert np.array_equal(picture[: 5 * scale : scale, : 4 * scale : scale], expected[0, 0].numpy())


@pytest.mark.parametrize("label", [None, 1])
def test_images_of_no_class_or_of_one_fill_a_square(label, plain, conditional, tmp_path):
    model, labels = (plain, []) if label is None else (conditional, ["--label", label])
    assert sample(model, tmp_path, *labels, "-n", 5, "--temperature", 0) == 0
    with np.load(tmp_path / "a.npz") as saved:
        assert saved["temperature"] == 0
        assert saved["images"].shape == (5, 1, 4, 4)
        assert "labels" not in saved if label is None else saved["labels"].tolist() == [1] * 5
    height, width = imread(tmp_path / "a.png").shape[:2]
    assert (height, width) == ((2 * 5 - 1) * 14, (3 * 5 - 1) * 14)  # three in a row, enlarged


@pytest.mark.parametrize("kind", few(KINDS, 1))
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


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert run("sample", "-n", 1, "--npz", tmp_path / "a.npz") == 2
    assert capsys.readouterr().err.endswith("error: safetensors is not installed: pip install safetensors\n")


def interrupted_after(batches: int, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the eager runtime is interrupted when it has drawn so many batches."""
    whole = EagerRuntime.run
    drawn: list[Job] = []

    def run(self: EagerRuntime, job: Job) -> None:
        if len(drawn) == batches:
            signal.raise_signal(by)
        drawn.append(job)
        whole(self, job)

    monkeypatch.setattr(EagerRuntime, "run", run)


@needs_signals
@pytest.mark.parametrize(("by", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_what_is_finished(by, status, plain, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(by)
    interrupted_after(2, by, monkeypatch)
    assert sample(plain, tmp_path, "-n", 9, "--batch", 2, "--runtime", "eager") == status
    captured = capsys.readouterr()
    assert "4 of 9 images are finished" in captured.err and "4 images" in captured.out and has_both(tmp_path)
    assert signal.getsignal(by) is before
    with np.load(tmp_path / "a.npz") as saved:
        assert saved["images"].shape == (4, 1, 4, 4)
        monkeypatch.undo()
        expected = Sampler(checkpoint.load(plain), (1, 4, 4)).sample(
            9, noise=noise_of(0, range(9), (1, 4, 4))
        )
        assert np.array_equal(saved["images"], expected[:4].numpy())


class Stopped(KeyboardInterrupt):
    """What any error that ends Sampler.sample has."""

    images = torch.randint(256, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


class Failed(Stopped, RuntimeError): ...


class Bug(TypeError):
    images = Stopped.images


def ended(monkeypatch, error: BaseException) -> None:
    """From now on, ``Sampler.sample`` raises."""

    def sample(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Sampler, "sample", sample)


@pytest.mark.parametrize(
    ("error", "status", "told"), [(Stopped(), 130, "interrupted"), (Failed("no power"), 2, "error: no power")]
)
def test_whatever_ends_the_run_what_is_finished_is_saved(
    error: Stopped, status: int, told: str, conditional: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    ended(monkeypatch, error)
    assert sample(conditional, tmp_path, "--n", 3) == status
    captured = capsys.readouterr()
    assert "stopped: 3 of 9 images are finished" in captured.err and told in captured.err.splitlines()[-1]
    assert captured.out.splitlines()[:2] == [str(tmp_path / "a.png"), str(tmp_path / "a.npz")]
    with np.load(tmp_path / "a.npz") as saved:
        assert np.array_equal(saved["images"], Stopped.images.numpy()) and saved["labels"].tolist() == [
            0,
            1,
            2,
        ]
    assert has_both(tmp_path)


def test_a_bug_saves_what_is_finished_and_stays_a_traceback(plain: Path, tmp_path: Path, monkeypatch) -> None:
    ended(monkeypatch, Bug("a bug"))
    with pytest.raises(Bug):
        sample(plain, tmp_path)
    assert has_both(tmp_path)


def test_an_end_before_the_first_image_saves_nothing(plain: Path, tmp_path: Path, monkeypatch) -> None:
    error = KeyboardInterrupt()
    error.images = Stopped.images[:0]  # type: ignore[attr-defined]  # as the sampler does
    ended(monkeypatch, error)
    assert sample(plain, tmp_path) == 130
    assert not list(tmp_path.iterdir())


def test_a_second_ctrl_c_leaves_whole_files(plain: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def half(file: Any, *_: object, **__: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    npz, png = tmp_path / "a.npz", tmp_path / "a.png"
    png.write_bytes(b"old")
    ended(monkeypatch, Stopped())
    monkeypatch.setattr("matplotlib.image.imsave", half)
    assert sample(plain, tmp_path) == 130
    assert png.read_bytes() == b"old" and sorted(tmp_path.iterdir()) == [npz, png]
    with np.load(npz) as saved:
        assert len(saved["images"]) == 3
    assert capsys.readouterr().out == ""


@needs_signals
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("images", ["all", "some, after another signal"])
def test_a_signal_while_images_are_saved_waits(images, by, plain, tmp_path, monkeypatch, capsys):
    def stopped(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise Stopped() from None

    def slowly(*arguments: Any, **named: Any) -> None:
        signal.raise_signal(by)
        save(*arguments, **named)

    save = np.savez_compressed
    monkeypatch.setattr(np, "savez_compressed", slowly)
    if images != "all":
        monkeypatch.setattr(Sampler, "sample", stopped)
    assert sample(plain, tmp_path) == 128 + (by if images == "all" else signal.SIGINT)
    captured = capsys.readouterr()
    assert "once more to give that up" in captured.err
    assert captured.out.splitlines()[:2] == [str(tmp_path / "a.png"), str(tmp_path / "a.npz")]
    assert has_both(tmp_path)


def test_too_little_memory_to_compress_does_not_cost_the_picture(plain, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "savez_compressed", fail)
    assert sample(plain, tmp_path) == 2
    assert (tmp_path / "a.png").exists() and not (tmp_path / "a.npz").exists()


def test_what_ended_the_run_counts_more_than_a_file_that_can_t_be_written(
    plain, tmp_path, monkeypatch, capsys
):
    ended(monkeypatch, Stopped())
    monkeypatch.setattr(np, "savez_compressed", lambda *_, **__: 1 / 0)
    assert sample(plain, tmp_path) == 130
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"] and capsys.readouterr().err.endswith(
        "interrupted\n"
    )


@needs_full
def test_a_file_that_can_t_be_written_does_not_cost_the_other(plain: Path, tmp_path: Path, capsys) -> None:
    png = tmp_path / "a.png"
    assert sample(plain, tmp_path, "--npz", "/dev/full") == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == str(png) and png.exists()
    assert captured.err == "error: '/dev/full': No space left on device\n"


def test_commands_run_in_any_thread(capsys) -> None:
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(run, "info").result() == 0
    assert "compiled module" in capsys.readouterr().out


@thorough
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("sample {small} --progress >&- 2>&-", 0),
        ("sample {small} --n=0 2>&-", 2),
        ("sample {small} >&{gone}", 0),
        ("info >&{gone}", 0),
        ("--help >&{gone}", 0),
        pytest.param("sample {small} >/dev/full", 2, marks=needs_full),
    ],
)
def test_closed_streams_and_pipes(command: str, status: int, plain: Path, tmp_path: Path) -> None:
    """What is saved does not depend on who listens, and nobody sees a traceback. gone: a pipe without its reader."""
    reader, gone = os.pipe()
    os.close(reader)
    small = f"--checkpoint={plain} --n=1 --size=4x4 --out=a.png --npz=a.npz"
    line = f"{sys.executable} -m pixelcnn_fast {command.format(small=small, gone=gone)}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("PYTHONUNBUFFERED", None)  # with which nothing is left for the end
    try:
        how: Any = dict(cwd=tmp_path, env=environment, pass_fds=[gone], stderr=subprocess.PIPE, timeout=120)
        done = subprocess.run(["bash", "-c", line], **how)
    finally:
        os.close(gone)
    full = b"error: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (status, full if "full" in command else b"")
    if "sample" in command and status == 0 or "full" in command:
        with np.load(tmp_path / "a.npz") as saved:
            assert saved["images"].shape == (1, 1, 4, 4)
        assert (tmp_path / "a.png").exists()


def test_names_that_stdout_can_not_show(plain: Path, tmp_path: Path, monkeypatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert (
        run("sample", "--checkpoint", plain, "--size", 4, "--n", 1, "--out", tmp_path / "\udcff é.png") == 0
    )
    assert "\\udcff \\xe9.png" in stream.buffer.getvalue().decode()


@thorough
@needs_signals
def test_a_real_ctrl_c_ends_with_130(plain: Path, tmp_path: Path) -> None:
    options = ["--checkpoint", plain, "--size", "64x64", "-n", 10000, "--out", tmp_path / "a.png"]
    options += ["--runtime", "eager", "--batch", 1, "--progress"]
    with subprocess.Popen(
        [sys.executable, "-m", "pixelcnn_fast", "sample", *map(str, options)],
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
    assert b"interrupted" in err and b"Traceback" not in err


def test_help_names_each_default_once_and_shows_models_of_one_s_own(capsys) -> None:
    assert run("sample", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "seed of the noise (default: 0)" in text and "if there are no classes (default: 16)" in text
    assert "the picture to write (default: samples.png) --npz" in text
    assert "show a progress bar files" in text and "(default: None)" not in text
    own = (
        "my.module:factory",
        "so its code is run",
        "--image-form",
        "--levels",
        "--head",
        "condition_shape=",
    )
    assert all(name in text for name in own)


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> Model:
    """The demo, on smaller images and with a smaller model."""
    model = random_model(n_classes=10, **TINY)
    monkeypatch.setattr(checkpoint, "load", lambda name: model)
    monkeypatch.setattr("pixelcnn_fast.cli.demo.SIZE", 14)
    monkeypatch.setattr("pixelcnn_fast.cli.demo.ROWS", 2)
    return model


@pytest.mark.parametrize(
    ("quick", "seconds", "expected"),
    [
        ([], 0.1, (0, 1)),
        ([], 1.0, (64, None)),
        (["--quick"], 0.1, (8, None)),
    ],
)
def test_the_demo_s_naive_sampler_draws_whole_images_where_that_is_soon_done(
    quick: list[str],
    seconds: float,
    expected: tuple[int, int | None],
    small_demo: Model,
    tmp_path: Path,
    monkeypatch,
) -> None:
    """seconds: that a forward takes, of which whole images need one for each of 196 pixels."""
    found = []

    def stopped(
        work: object, contestants: list[str], repeats: int, *naive: int | None, progress: bool
    ) -> None:
        found.append((contestants, naive))
        raise KeyboardInterrupt

    monkeypatch.setattr("pixelcnn_fast.cli.demo._forward_seconds", lambda work: seconds)
    monkeypatch.setattr("pixelcnn_fast.cli.demo.compare", stopped)
    assert run("demo", "--out", tmp_path, *quick) == 130
    [(contestants, naive)] = found
    assert naive == expected and "cpu-bf16" not in contestants and "reference" in contestants


def test_demo(small_demo: Model, tmp_path: Path, capsys) -> None:
    assert run("demo", "--out", tmp_path / "out", "--quick") == 0
    out = capsys.readouterr().out
    files = ["digits.png", "comparison.md", "comparison.json", "comparison.png"]
    assert all(str(tmp_path / "out" / name) in out and (tmp_path / "out" / name).exists() for name in files)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    [comparison] = found["comparisons"]
    sampler, labels = Sampler(small_demo, (1, 14, 14)), torch.arange(10).repeat(2)
    assert "at temperature 0.9" in out
    digits, others = (sampler.sample(20, labels, t, torch.Generator().manual_seed(0)) for t in (0.9, 1.0))
    assert not torch.equal(digits, others)
    picture = (imread(tmp_path / "out" / "digits.png")[..., :3] * 255).round()
    assert np.array_equal(picture, image_grid(digits, columns=10, scale=2))
    texts = [contestant["check"]["text"] for contestant in comparison["contestants"]]
    assert texts and all(text == "identical" or text.endswith("within rounding") for text in texts)
    assert "extrapolated from 8 of 196 pixels" in out

"""``complete`` and ``nll``: images that are given, as PNGs or arrays, and what may be wrong with them."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixelcnn_fast import Sampler, checkpoint, likelihood
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import PixelRNN
from pixelcnn_fast.noise import noise_of
from tests.cli.common import run

N, SIZE = 3, (4, 5)
IMAGES = torch.randint(256, (N, 1, *SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.tensor([2, 0, 1])
FOUR: Any = dict(kind="row_lstm", input_channels=1, hidden_channels=4, n_layers=1, kernel_size=3, levels=4)


def n_frames(gif: Any) -> int:
    return int(gif.n_frames)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the same images as arrays and as pictures, and others that are wrong."""
    monkeypatch.chdir(tmp_path)
    images = IMAGES.numpy()
    np.savez("a.npz", images=images, labels=LABELS.numpy(), mask=images > 99)
    np.savez("only.npz", whatever=images[:, 0])
    np.save("a.npy", images.transpose(0, 2, 3, 1))
    np.savez("floats.npz", images=images / 255)
    np.savez("wide.npz", images=images.astype(int) + 1000)
    np.savez("objects.npz", images=np.array([None]))
    for name in ("pictures", "sizes", "empty", "mixed"):
        Path(name).mkdir()
    for k, image in enumerate(images[:, 0]):
        grey = Image.fromarray(image)
        (grey.convert("RGB") if k == 1 else grey).save(f"pictures/{k}.png")
    Image.new("L", (5, 4)).save("sizes/0.png")
    Image.new("L", (5, 5)).save("sizes/1.png")
    Image.new("RGB", (5, 4), (1, 2, 3)).save("colour.png")
    Image.new("RGBA", (5, 4), (1, 1, 1, 128)).save("glass.png")
    Image.new("I;16", (5, 4)).save("deep.png")
    Image.new("L", (4, 4)).save("mask.png")
    Path("text.png").write_text("no picture")
    whole = Path("pictures/0.png").read_bytes()
    Path("cut.png").write_bytes(whole[:-30])
    header = b"IHDR" + struct.pack(">2I5B", 60000, 60000, 8, 0, 0, 0, 0)
    Path("huge.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    np.savez("labels.npz", images=images, labels=np.array([None]))
    np.savez("words.npz", known=np.array(["top"]), noise=np.array(["none"]))
    np.savez("all.npz", known=True)
    np.savez("nan.npz", known=np.full(SIZE, np.nan))
    np.savez("wider.npz", known=np.ones(SIZE, complex))
    Path("text.npz").write_text("no arrays")
    return tmp_path


@pytest.mark.parametrize("given", ["a.npz", "only.npz", "a.npy", "pictures"])
def test_bits_per_dimension(given: str, plain: Path, capsys) -> None:
    bits = likelihood.nll(checkpoint.load(plain), IMAGES).double() / np.log(2) / 20
    assert run("nll", given, "--model", plain, "--batch", 2, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    names = [f"{k}.png" if given == "pictures" else str(k) for k in range(N)]
    assert list(told["bits_per_dim"]) == names and told["model"] == str(plain)
    assert list(told["bits_per_dim"].values()) == pytest.approx(bits.tolist(), rel=1e-5)
    assert told["mean"] == pytest.approx(float(bits.mean()), rel=1e-5)
    assert run("nll", given, "--model", plain) == 0
    *each, mean = capsys.readouterr().out.splitlines()
    assert each == [f"{x:9.4f}  {name}" for x, name in zip(bits, names, strict=True)]
    assert mean == f"{bits.mean():9.4f}  bits per dimension, the mean of 3 images"


@pytest.mark.parametrize("label", [[], ["--label", 1]])
def test_labels_are_those_of_the_file_or_one_for_all(label: list, conditional: Path, capsys) -> None:
    labels = torch.full((N,), 1) if label else LABELS
    bits = likelihood.nll(checkpoint.load(conditional), IMAGES, labels) / np.log(2) / 20
    assert run("nll", "a.npz", "--model", conditional, "--json", *label) == 0
    found = json.loads(capsys.readouterr().out)["bits_per_dim"].values()
    assert list(found) == pytest.approx(bits.tolist(), rel=1e-5)


def test_ctrl_c_keeps_the_likelihoods_that_are_finished(plain: Path, monkeypatch, capsys) -> None:
    score = Sampler.log_prob
    calls: list[None] = []

    def log_prob(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(*arguments)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(Sampler, "log_prob", log_prob)
    assert run("nll", "a.npz", "--model", plain, "--batch", 1) == 130
    captured = capsys.readouterr()
    assert "2 of 3 images are finished" in captured.err and "the mean of 2 images" in captured.out


def test_shades_are_levels(tmp_path: Path, capsys) -> None:
    """Pictures of a model of few levels span black to white, and are read as they were written."""
    checkpoint.save(model := random_model(family=PixelRNN, **FOUR), tmp_path / "four")
    options = ["--model", "four", "--size", "4x5"]
    assert run("sample", *options, "-n", 1, "--npz", "drawn.npz", "--out", "drawn.png") == 0
    with np.load("drawn.npz") as saved:
        image = saved["images"]
    shown = np.asarray(Image.open("drawn.png").convert("L"))[::11, ::11]
    assert np.array_equal(shown, image[0, 0] * 85) and len(np.unique(image)) > 2
    Image.fromarray(shown).save("one.png")
    capsys.readouterr()
    assert run("nll", "one.png", *options, "--json") == 0
    bits = likelihood.nll(model, torch.from_numpy(image)) / np.log(2) / 20
    assert json.loads(capsys.readouterr().out)["mean"] == pytest.approx(float(bits), rel=1e-5)
    assert run("nll", "colour.png", *options) == 2
    Image.fromarray(shown + 1).save("one.png")
    assert run("nll", "one.png", *options) == 2
    assert "is none of the model's 4 levels" in capsys.readouterr().err


KNOWN = torch.arange(4)[:, None].expand(SIZE)


@pytest.mark.parametrize("how", ["top-half", "rows", "png", "npz of each"])
def test_completions(how: str, conditional: Path, capsys) -> None:
    known = KNOWN < 2
    given = ["--known-rows", 2]
    if how == "png":
        known = torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) < 0.5
        Image.fromarray(known.numpy()).save("known.png")
        given = ["--known", "known.png"]
    elif how != "rows":
        given = ["--known", "top-half"]
    if how == "npz of each":
        known = IMAGES > 99
        np.savez("known.npz", known=known.numpy())
        given = ["--known", "known.npz"]
    arguments = ["--model", conditional, "-n", 2, "--seed", 3, "--npz", "c.npz", "--gif", "c.gif", "--json"]
    assert run("complete", "a.npz", *given, *arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 6 and told["files"] == ["completed.png", "c.npz", "c.gif"]
    sampler = Sampler(checkpoint.load(conditional), (1, *SIZE))
    masks = known.repeat(2, 1, 1, 1) if known.dim() == 4 else known
    noise = noise_of(3, range(6), (1, *SIZE))
    expected = sampler.complete(IMAGES.repeat(2, 1, 1, 1), masks, LABELS.repeat(2), noise=noise)
    with np.load("c.npz") as saved:
        assert np.array_equal(saved["images"], expected.numpy())
        assert saved["labels"].tolist() == [2, 0, 1] * 2
    with Image.open("c.gif") as gif:
        assert n_frames(gif) == (3 if given[-1] in (2, "top-half") else 5)  # equal ones count once


BAD = {
    "nll a.npz --array nothing": "a.npz has no array 'nothing', but images, labels, mask: --array takes one",
    "nll a.npz --array mask": "the images are bool 3x1x4x5: expected the levels, integers",
    "nll floats.npz": "the images are float64 3x1x4x5",
    "nll wide.npz": r"the images hold 1009...1254, and the model has levels 0...255: scale them, or say --levels",
    "nll objects.npz": "NumPy can't read it",
    "nll text.npz": "NumPy can't read it",
    "nll missing.npz": "'missing.npz': No such file",
    "nll missing": "'missing': No such file",
    "nll empty": "empty is a folder without PNGs: name one with *.png in it",
    "nll sizes": "sizes/1.png is 5x5, and 0.png is 4x5: resize them to one size",
    "nll colour.png": "the images have 3 channels, and the model takes 1 channel: make them grey",
    "nll glass.png": "glass.png is transparent in part",
    "nll deep.png": "deep.png: a PNG of mode I;16: save it with 8 bits",
    "nll text.png": "text.png is no picture",
    "nll cut.png": "cut.png is no picture that can be read (image file is truncated",
    "nll huge.png": "huge.png is no picture that can be read (Image size (3600000000 pixels) exceeds limit",
    "nll labels.npz": "labels.npz: NumPy can't read it (Object arrays",
    "nll a.npz --size 28": "the images are 4x5, and --size is 28x28: leave it out, or resize",
    "nll pictures --array images": "--array images: pictures is no .npz",
    "nll a.npz --label 1": "this model has no classes; leave --label out",
    "complete a.npz": "--known",
    "complete a.npz --known top-half --known-rows 1": "not allowed with",
    "complete a.npz --known-rows 5": "--known-rows 5: the images have 4 rows",
    "complete a.npz --known mask.png": "the mask is 1x4x4, and images are 3x1x4x5: give one of 4x5",
    "complete a.npz --known pictures/0.png": "a mask is black and white",
    "complete a.npz --known words.npz": "words.npz: NumPy can't read it (an array of <U3, expected numbers",
    "complete a.npz --known wider.npz": "an array of complex128, expected numbers",
    "complete a.npz --known nan.npz": "--known nan.npz: a mask is black and white",
    "complete a.npz --known a.npz": "a.npz has no array 'known', but images, labels, mask: call one known",
    "complete a.npz --known top-half --gif a.png": "the picture is a GIF, so name it .gif",
    "complete a.npz --known top-half --npz b --save-noise ./b": "--save-noise b is also the file of --npz",
    "complete a.npz --known top-half --noise text.npz": "NumPy can't read it",
    "complete a.npz --known top-half --noise words.npz": "an array of <U4, expected numbers",
    "complete a.npz --known top-half --noise only.npz": "noise",
}


@pytest.mark.parametrize("line", BAD)
def test_what_is_wrong_is_told_in_one_line(line: str, plain: Path, folder: Path, capsys) -> None:
    before = sorted(folder.iterdir())
    assert run(*line.split(), "--model", plain) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and BAD[line] in captured.err and not captured.out
    assert sorted(folder.iterdir()) == before


def test_ctrl_c_keeps_the_completions_that_are_finished(plain: Path, monkeypatch, capsys) -> None:
    def complete(*_: object, **__: object) -> None:
        error = KeyboardInterrupt()
        error.images = IMAGES[:2]  # type: ignore[attr-defined]  # as the sampler does
        raise error

    monkeypatch.setattr(Sampler, "complete", complete)
    masks = ["--known", "known.npz", "--gif", "a.gif", "--save-noise", "noise.npz"]
    np.savez("known.npz", known=(IMAGES > 99).numpy())
    assert run("complete", "a.npz", *masks, "--model", plain, "--npz", "c.npz") == 130
    assert "2 of 3 images are finished" in capsys.readouterr().err and Path("a.gif").exists()
    with np.load("c.npz") as saved, np.load("noise.npz") as noise:
        assert np.array_equal(saved["images"], IMAGES[:2].numpy()) and len(noise["noise"]) == 2


def test_a_model_of_classes_needs_labels(conditional: Path, capsys) -> None:
    assert run("nll", "pictures", "--model", conditional) == 2
    assert (
        "say --label 0...2 for all, or give an .npz that has an array labels of 3" in capsys.readouterr().err
    )
    assert run("nll", "pictures", "--model", conditional, "--label", 3) == 2
    assert "--label 3: expected 0...2" in capsys.readouterr().err


def test_noise_that_was_saved_draws_the_same(plain: Path) -> None:
    options = ["sample", "--model", plain, "--size", "4x5", "-n", 2]
    assert run(*options, "--seed", 5, "--npz", "1.npz", "--save-noise", "noise.npz") == 0
    assert run(*options, "--noise", "noise.npz", "--npz", "2.npz") == 0
    with np.load("1.npz") as one, np.load("2.npz") as other:
        assert np.array_equal(one["images"], other["images"])
        assert one["seed"] == 5 and "seed" not in other
    assert run(*options[:-1], 3, "--noise", "noise.npz") == 2


def test_a_gif_fills_row_by_row(plain: Path) -> None:
    options = ["sample", "--model", plain, "--size", "4x5", "-n", 1, "--out", "a.png"]
    assert run(*options, "--npz", "drawn.npz", "--gif", "a.gif") == 0
    with np.load("drawn.npz") as saved, Image.open("a.gif") as gif:
        image = saved["images"][0, 0]
        assert n_frames(gif) == 5
        for top in range(5):
            gif.seek(top)
            shown = np.asarray(gif.convert("L"))[::11, ::11].astype(int)
            assert np.abs(shown[:top] - image[:top]).max(initial=0) <= 1 and (shown[top:] == 128).all()


def test_more_levels_than_a_picture_has_are_saved_as_arrays_alone(tmp_path: Path) -> None:
    checkpoint.save(random_model(family=PixelRNN, **{**FOUR, "levels": 300}), tmp_path / "many")
    form = ["--size", "4x5", "--image-form", "levels"]
    assert run("sample", "--model", "many", *form, "-n", 1, "--npz", "a.npz") == 0
    with np.load("a.npz") as saved:
        assert saved["images"].dtype == np.int32
    assert not Path("samples.png").exists()

"""The training example learns, writes a loadable checkpoint, and refuses a wrong data file."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import train_mnist

from pixelcnn_fast import checkpoint
from pixelcnn_fast.likelihood import bits_per_dim
from tests.examples import interrupted_at_its_second_call


@pytest.fixture
def data(tmp_path: Path) -> dict[str, np.ndarray]:
    """Black images with a white column whose position is the label's, which are in data.npz, too."""
    labels = np.arange(70, dtype=np.uint8) % 3
    images = np.zeros((70, 7, 5), np.uint8)
    images[np.arange(70), :, labels + 1] = 255
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    return dict(images=images, labels=labels)


def options(folder: Path, **more: object) -> list[str]:
    given = dict(npz=folder / "data.npz", held_out=10, hidden=8, residual=1, epochs=4, batch=8, lr=0.02)
    given |= dict(out=folder / "model.safetensors") | more
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def test_learns_and_writes_the_best_epoch(data: dict, tmp_path: Path) -> None:
    history = train_mnist.main(options(tmp_path))
    assert len(history) == 4
    assert min(history) < 0.7 * history[0]
    model = checkpoint.load(tmp_path / "model.safetensors")
    assert model.config["n_classes"] == 3 and model.config["hidden_channels"] == 8
    held_out = torch.from_numpy(data["images"])[-10:, None], torch.from_numpy(data["labels"])[-10:].long()
    assert bits_per_dim(model, [held_out]) == pytest.approx(min(history), rel=1e-4)
    notes = checkpoint.read_notes(tmp_path / "model.safetensors")
    assert float(notes["bits_per_dim"]) == pytest.approx(min(history), abs=1e-4)


def test_a_pixelcnnpp_learns_grey_levels(data: dict, tmp_path: Path) -> None:
    history = train_mnist.main(options(tmp_path, model="pixelcnnpp", hidden=4, epochs=2))
    assert history[1] < 0.9 * history[0]
    model = checkpoint.load(tmp_path / "model.safetensors")
    assert model.config | dict(input_channels=1, n_filters=4, n_resnets=1, n_classes=3) == model.config
    held_out = torch.from_numpy(data["images"])[-10:, None], torch.from_numpy(data["labels"])[-10:].long()
    assert bits_per_dim(model, [held_out]) == pytest.approx(min(history), rel=1e-4)


@pytest.mark.parametrize("kind", ["row_lstm", "diagonal_bilstm"])
def test_a_pixel_rnn_learns_binarised_digits(data, tmp_path, kind, capsys):
    history = train_mnist.main(options(tmp_path, model=kind, layers=1, hidden=6))
    assert min(history) < 0.8 * history[0]
    model = checkpoint.load(tmp_path / "model.safetensors")
    assert (
        model.config | dict(kind=kind, levels=2, n_layers=1, hidden_channels=6, n_classes=None)
        == model.config
    )
    notes = checkpoint.read_notes(tmp_path / "model.safetensors")
    nats = min(history) * 35 * math.log(2)
    assert float(notes["nats_per_image"]) == pytest.approx(nats, abs=0.01)
    assert f"best epoch: {nats:.2f} nats per image" in capsys.readouterr().out
    held_out = (
        torch.from_numpy(data["images"])[-10:, None] // 255
    )  # black and white, so they are drawn as they are
    assert bits_per_dim(model, [held_out]) == pytest.approx(min(history), rel=1e-4)


def test_binarisation() -> None:
    images = torch.tensor([0, 64, 255], dtype=torch.uint8).expand(20_000, 3)
    drawn = train_mnist.binarised(images, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.uint8 and drawn.unique().tolist() == [0, 1]
    dark, grey, bright = drawn.float().mean(0).tolist()
    assert (dark, bright) == (0, 1) and grey == pytest.approx(64 / 255, abs=0.01)
    assert torch.equal(drawn, train_mnist.binarised(images, torch.Generator().manual_seed(0)))


def test_reads_mnist_through_torchvision(data: dict, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 70), ("t10k", 1)):
        images, labels = data["images"][:n], data["labels"][:n]
        header = struct.pack(">4i", 0x803, *images.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, n) + labels.tobytes())
    images, labels = train_mnist.load_torchvision(tmp_path)
    assert images.dtype == torch.uint8 and np.array_equal(images[:, 0], data["images"])
    assert labels.dtype == torch.int64 and np.array_equal(labels, data["labels"])


def test_the_seed_decides(data: dict, tmp_path: Path) -> None:
    runs = [train_mnist.main(options(tmp_path, epochs=1, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0] != pytest.approx(runs[2], rel=1e-5)


def test_resume_goes_on_from_the_weights(data: dict, tmp_path: Path) -> None:
    history = train_mnist.main(options(tmp_path, out=tmp_path / "first.safetensors"))
    resumed = train_mnist.main(options(tmp_path, epochs=1, lr=1e-4, resume=tmp_path / "first.safetensors"))
    assert resumed[0] < 1.1 * min(history) < 0.5 * history[0]


def test_the_average_follows_slowly() -> None:
    average, model = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    assert model.running_var is not None and model.num_batches_tracked is not None
    assert average.running_var is not None
    model.weight.data.fill_(2)
    model.running_var.fill_(11)
    model.num_batches_tracked.fill_(7)
    train_mnist.follow(average, model, decay=0.9)
    torch.testing.assert_close(average.weight.data, torch.full((2,), 1.1))
    torch.testing.assert_close(average.running_var, torch.full((2,), 2.0))
    assert average.num_batches_tracked == 7 and (model.weight == 2).all()


def test_the_best_epoch_need_not_be_the_last(data, tmp_path, monkeypatch):
    bits = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(train_mnist, "bits_per_dim", lambda *_: next(bits))
    assert train_mnist.main(options(tmp_path, epochs=3)) == [3, 1, 2]
    notes = checkpoint.read_notes(tmp_path / "model.safetensors")
    assert (notes["epoch"], notes["bits_per_dim"]) == ("2", "1.0000")


def test_the_learning_rate_rises_and_falls() -> None:
    warmup = train_mnist.WARMUP
    shares = [train_mnist.schedule(done) for done in (0, warmup / 2, warmup, (1 + warmup) / 2, 1)]
    assert shares == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_minutes_stop_it(data: dict, tmp_path: Path) -> None:
    history = train_mnist.main(options(tmp_path, epochs=100_000, minutes=0.01))
    assert 1 <= len(history) < 1000
    checkpoint.load(tmp_path / "model.safetensors")


def test_ctrl_c_keeps_the_best_epoch(data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_mnist, "bits_per_dim", interrupted_at_its_second_call(bits_per_dim))
    history = train_mnist.main(options(tmp_path))
    assert len(history) == 1
    checkpoint.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(images=None), "no array images, only ['labels']"),
        (dict(images=None, labels=None, x=np.zeros(3)), "no array images and no array labels"),
        (dict(images=np.zeros((70, 7, 5))), "images are float64 [70, 7, 5], expected uint8 [N, H, W]"),
        (dict(images=np.zeros((70, 35), np.uint8)), "images are uint8 [70, 35]"),
        (dict(labels=np.zeros(69, int)), "labels are int64 [69], expected 70 integers"),
        (dict(labels=np.zeros(70)), "labels are float64 [70], expected 70 integers"),
        (dict(labels=np.full(70, -1)), "expected 70 integers from 0 on"),
        (dict(images=np.array([None] * 70)), "allow_pickle"),
    ],
)
def test_wrong_arrays(data, tmp_path, capsys, change, message):
    arrays = {name: array for name, array in (data | change).items() if array is not None}
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(SystemExit):
        train_mnist.main(options(tmp_path))
    error = capsys.readouterr().err
    assert message in error and "data.npz" in error


def test_wrong_files_and_options(data: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def error(**more: object) -> str:
        with pytest.raises(SystemExit):
            train_mnist.main(options(tmp_path, **more))
        return capsys.readouterr().err

    (tmp_path / "data.npz").unlink()
    assert "no such file" in error()
    (tmp_path / "data.npz").write_bytes(b"")
    assert "numpy.savez" in error()
    (tmp_path / "data.npz").write_bytes(b"PK\3\4 and no archive")
    assert "numpy.savez" in error()
    np.save(tmp_path / "data.npy", data["images"])
    assert "numpy.savez" in error(npz=tmp_path / "data.npy")
    np.savez(tmp_path / "data.npz", **data)
    assert "none is left to train on" in error(held_out=70)
    assert "--held-out" in error(held_out=0)
    for option in ("batch", "epochs", "hidden"):
        assert f"--{option} -1: expected 1 or more" in error(**{option: -1})
    assert "--layers 0: expected 1 or more" in error(model="row_lstm", layers=0)
    for rate in (0, -1, math.inf, math.nan):
        assert "expected a positive number" in error(lr=rate)
    assert "is a folder" in error(out=tmp_path)
    train_mnist.main(options(tmp_path, epochs=1))
    assert "was asked for" in error(hidden=9, resume=tmp_path / "model.safetensors")
    assert "PixelRNN" in error(model="row_lstm", resume=tmp_path / "model.safetensors")
    assert "no such file" in error(resume=tmp_path / "absent.safetensors")
    assert "no folder" in error(out=tmp_path / "absent" / "model.safetensors")

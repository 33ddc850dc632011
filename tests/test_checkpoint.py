"""Checkpoints come back exactly, and every broken file is refused with its cause."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pixelcnn_fast import checkpoint
from pixelcnn_fast.bench.workload import random_model, workload
from pixelcnn_fast.models import GatedPixelCNN, Model, PixelCNN, PixelCNNpp, PixelRNN, PixelSNAIL, reference
from pixelcnn_fast.models.pixel_rnn import KINDS

Tensors = dict[str, torch.Tensor]
RNN: dict[str, Any] = dict(
    input_channels=1, hidden_channels=4, n_layers=1, levels=2, learn_initial_state=True
)
CONFIG: dict[str, Any] = dict(input_channels=2, hidden_channels=5, n_residual=1, n_classes=3, kernel_size=5)


@pytest.fixture
def model() -> PixelCNN:
    torch.manual_seed(0)
    model = PixelCNN(**CONFIG)
    model(torch.rand(4, 2, 6, 5), torch.tensor([0, 1, 2, 0]))  # moves the batch-norm statistics
    return model


@pytest.fixture
def saved(model: PixelCNN, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.save(model, path, data="noise", author="nobody")
    return path


def rewrite(path: Path, change: Callable[[Tensors], object] = lambda tensors: None, **config: Any) -> None:
    """Writes a file again as save does, but with other tensors and settings."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {**metadata, "config": json.dumps(json.loads(metadata["config"]) | config)})


def test_comes_back_exactly(model: PixelCNN, saved: Path) -> None:
    loaded = checkpoint.load(saved)
    assert loaded.config == model.config
    assert not any(module.training for module in loaded.modules())
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    images, labels = torch.rand(3, 2, 7, 5), torch.tensor([2, 0, 1])
    assert torch.equal(loaded(images, labels), model.eval()(images, labels))


OTHERS: dict[str, Callable[[], Model]] = {
    "gated": lambda: GatedPixelCNN(3, 4, [1, 2], n_classes=2, channel_order="interleaved", levels=5),
    "plus plus": lambda: PixelCNNpp(3, 4, 1, 2, n_classes=2),
    "snail": lambda: PixelSNAIL(5, 4, 3, 1, 1, 1, n_classes=2),
    **{kind: partial(random_model, family=PixelRNN, kind=kind, **RNN) for kind in KINDS},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_come_back_as_themselves(name: str, tmp_path: Path) -> None:
    model, path = OTHERS[name]().eval(), tmp_path / "other.safetensors"
    checkpoint.save(model, path, data="noise")
    loaded = checkpoint.load(path)
    assert type(loaded) is type(model) and loaded.config == model.config
    images, labels = torch.rand(2, model.input_channels, 3, 3), torch.tensor([1, 0])
    images = (4 * images).byte() if isinstance(model, PixelSNAIL) else images
    given = [images] if model.n_classes is None else [images, labels]
    assert torch.equal(loaded(*given), model(*given))
    assert torch.allclose(workload(loaded, 2, 3, 3).plain_model()(*given), model(*given), atol=1e-5)
    assert checkpoint.read_notes(path) == {"data": "noise"}


def test_a_model_that_this_version_does_not_know(saved: Path) -> None:
    save_file(load_file(saved), saved, metadata={"config": "{}", "model": "PixelMLP"})
    with pytest.raises(ValueError, match="PixelMLP.*knows PixelCNN, GatedPixelCNN, PixelRNN"):
        checkpoint.load(saved)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_the_dtype(model: PixelCNN, tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint.save(model.to(dtype), tmp_path / "model.safetensors")
    loaded = checkpoint.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_save_takes_channels_last_and_changes_nothing(model: PixelCNN, tmp_path: Path) -> None:
    layout: dict[str, Any] = dict(memory_format=torch.channels_last)  # which torch's annotations leave out
    model.to(**layout)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    checkpoint.save(model, tmp_path / "model.safetensors")
    assert model.training
    assert model.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    loaded = checkpoint.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.state_dict(), before, rtol=0, atol=0)


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_other_users_may_read_it(saved: Path) -> None:
    saved.with_name("plain").touch()
    assert saved.stat().st_mode == saved.with_name("plain").stat().st_mode


def test_notes(saved: Path) -> None:
    assert checkpoint.read_notes(saved) == {"data": "noise", "author": "nobody"}


@pytest.mark.parametrize("notes", [{"epoch": 3}, {"config": "{}"}])
def test_save_refuses_notes(model: PixelCNN, tmp_path: Path, notes: dict) -> None:
    with pytest.raises(ValueError, match="notes are strings"):
        checkpoint.save(model, tmp_path / "model.safetensors", **notes)


def test_save_refuses_models_without_config(model: PixelCNN, tmp_path: Path) -> None:
    wrapped: Any = nn.DataParallel(model)
    with pytest.raises(ValueError, match=r"DataParallel is none of.*its \.module"):
        checkpoint.save(wrapped, tmp_path / "model.safetensors")


def test_save_refuses_a_class_that_load_would_not_know(tmp_path: Path) -> None:
    class Own(PixelCNN):
        pass

    with pytest.raises(ValueError, match="Own is none of PixelCNN, GatedPixelCNN, PixelRNN"):
        checkpoint.save(Own(**CONFIG), tmp_path / "model.safetensors")
    same_name: Any = reference.PixelCNN(**CONFIG)
    with pytest.raises(ValueError, match="PixelCNN is none of .* with its config"):
        checkpoint.save(same_name, tmp_path / "model.safetensors")


def test_save_refuses_a_missing_folder(model: PixelCNN, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create it first"):
        checkpoint.save(model, tmp_path / "absent" / "model.safetensors")


def test_a_refused_save_keeps_the_old_file(model: PixelCNN, saved: Path) -> None:
    before = saved.read_bytes()
    model.conv_out.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="conv_out.weight holds NaN"):
        checkpoint.save(model, saved)
    assert saved.read_bytes() == before


def test_an_interrupted_save_keeps_the_old_file(model, saved, monkeypatch):
    def interrupted(file: int) -> None:
        raise KeyboardInterrupt

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(model, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.read_notes])
def test_missing_file(tmp_path: Path, read) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; the packaged checkpoints are mnist"):
        read(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="not a file; the packaged checkpoints are mnist"):
        read(tmp_path)


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.read_notes])
def test_not_safetensors(model: PixelCNN, tmp_path: Path, read) -> None:
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "empty").touch()
    for name in ("model.pt", "empty"):
        with pytest.raises(ValueError, match=f"{name}: not a safetensors file"):
            read(tmp_path / name)


@pytest.mark.parametrize("keep", [4, 100, 0.5, -1])
def test_truncated(saved: Path, keep: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ValueError, match="or a truncated one"):
        checkpoint.load(saved)


def test_no_metadata(saved: Path) -> None:
    save_file(load_file(saved), saved)
    with pytest.raises(ValueError, match="metadata has no 'config'"):
        checkpoint.load(saved)
    assert checkpoint.read_notes(saved) == {}


UNUSABLE = [
    "not json",
    "[1]",
    '{"width": 3}',
    '{"kernel_size": 4}',
    '{"kernel_size": 0}',
    '{"hidden_channels": -1}',
]
UNUSABLE += ['{"hidden_channels": "six"}', '{"hidden_channels": null}', "[" * 100_000]


@pytest.mark.parametrize("config", UNUSABLE, ids=lambda config: config[:30])
def test_unusable_config(saved: Path, config: str) -> None:
    save_file(load_file(saved), saved, metadata={"config": config})
    with pytest.raises(ValueError, match="does not describe a PixelCNN"):
        checkpoint.load(saved)


def changing(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({key: change(tensors[key])})


def setting(key: str, value: float, at: tuple[int, ...] = ()) -> Callable[[Tensors], object]:
    """at: the element that becomes this value; by default, the last one."""

    def change(tensors: Tensors) -> None:
        tensors[key][at or tuple(size - 1 for size in tensors[key].shape)] = value

    return change


def renaming(key: str, other: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({other: tensors.pop(key)})


BROKEN: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a key too few": (lambda x: x.pop("conv_in.bias"), r"1 missing .'conv_in.bias'., 0 unexpected .\];"),
    "a key too many": (lambda x: x.update({"b": torch.zeros(1)}), r"0 missing .\], 1 unexpected .'b'."),
    "another key": (renaming("conv_in.bias", "b"), r"1 missing .'conv_in.bias'., 1 unexpected .'b'."),
    "a prefix": (renaming("conv_in.bias", "module.conv_in.bias"), "unexpected .'module.conv_in.bias'."),
    "no tensors": (lambda tensors: tensors.clear(), "missing"),
    "integers": (changing("conv_in.weight", torch.Tensor.char), "conv_in.weight is torch.int8"),
    "floats": (changing("norm_in.num_batches_tracked", torch.Tensor.float), "tracked is torch.float32"),
    "NaN": (setting("embedding.weight", torch.nan), "embedding.weight holds NaN"),
    "infinite": (setting("norm_in.running_var", -torch.inf), "norm_in.running_var holds NaN"),
    "a leak": (setting("conv_in.mask", 1, (0, 1, 2, 2)), r"conv_in.mask differs .*\[0, 1, 2, 2\]"),
    "a lost tap": (setting("conv_in.mask", 0, (4, 0, 1, 3)), r"conv_in.mask differs .*\[4, 0, 1, 3\]"),
    "a mask of NaN": (setting("conv_in.mask", torch.nan, (0, 0, 0, 0)), r"mask differs .*\[0, 0, 0, 0\]"),
    "the mask of a block": (setting("blocks.0.conv2.mask", 2), "blocks.0.conv2.mask differs"),
    "the last layer's mask": (setting("conv_out.mask", 2), "conv_out.mask differs"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tensors(saved: Path, name: str) -> None:
    change, message = BROKEN[name]
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(saved)


def test_tensors_of_another_size(saved: Path) -> None:
    rewrite(saved, hidden_channels=6)
    with pytest.raises(ValueError, match=r"conv_in.weight is \S+ \[5, 2, 5, 5\], .* \[6, 2, 5, 5\]"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "setting", ["input_channels", "hidden_channels", "n_layers", "levels", "kernel_size"]
)
@pytest.mark.parametrize("value", [10**6 + 1, 10**30])
def test_a_config_of_a_huge_model_is_refused_before_it_is_built(tmp_path, setting, value):
    path = tmp_path / "model.safetensors"
    checkpoint.save(PixelRNN("row_lstm", 1, 2, 1, levels=2), path)
    config: dict[str, Any] = {setting: value}
    rewrite(path, **config)
    with pytest.raises(ValueError, match=f"{setting} is {value}: the file's tensors are not as large"):
        checkpoint.load(path)


@pytest.mark.parametrize("dilation", [0, -1, 1.5, True, 10**9])
def test_dilations_are_positive_integers(dilation: float, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(GatedPixelCNN(1, 2, [1, 1]), path)
    rewrite(path, dilations=[dilation, 1])
    with pytest.raises(ValueError, match="dilations are .*: expected integers of 1...16384"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("model", "config", "tensors", "message"),
    [
        (
            "GatedPixelCNN",
            dict(dilations=[1] * 500),
            torch.zeros(1000),
            "dilations has 500 items: .* not as many",
        ),
        (
            "PixelRNN",
            dict(n_layers=5000),
            torch.zeros(5000, 0),
            "n_layers is 5000: .* not as large or as many",
        ),
    ],
)
def test_layers_are_counted_by_tensors_and_not_by_sizes(model, config, tensors, message, tmp_path):
    metadata = dict(model=model, config=json.dumps(dict(input_channels=1, **config)))
    save_file({"x": tensors}, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("layers, levels", [(1, 300), (20, 2)])
def test_a_setting_may_be_as_large_as_the_largest_size_or_as_the_tensors_are_many(tmp_path, layers, levels):
    model = PixelRNN("row_lstm", 1, 1, layers, levels=levels)
    checkpoint.save(model, tmp_path / "model.safetensors")
    assert checkpoint.load(tmp_path / "model.safetensors").config == model.config


def test_data_parallel_prefix_is_taken_off(model: PixelCNN, saved: Path) -> None:
    def prefixed(tensors: Tensors) -> None:
        for key in list(tensors):
            tensors[f"module.{key}"] = tensors.pop(key)

    rewrite(saved, prefixed)
    torch.testing.assert_close(checkpoint.load(saved).state_dict(), model.state_dict(), rtol=0, atol=0)


def test_packaged_mnist() -> None:
    model = checkpoint.load("mnist")
    assert model.config["n_classes"] == 10 and model.config["input_channels"] == 1
    assert float(checkpoint.read_notes("mnist")["bits_per_dim"]) < 1.2
    plain = reference.PixelCNN(**model.config).eval()
    plain.load_state_dict(model.state_dict())
    images, labels = torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.tensor([3])
    logits = model(images, labels)
    torch.testing.assert_close(logits, plain(images, labels))
    assert logits[0, 0, 0, 0].softmax(-1)[0] > 0.9  # the corner of a digit's image is black

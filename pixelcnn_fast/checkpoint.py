"""Checkpoints: safetensors files of a model's weights, its config and free notes."""

from __future__ import annotations

import json
import os
import pickle
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from pixelcnn_fast.files import replacing
from pixelcnn_fast.models import GatedPixelCNN, Model, PixelCNN, PixelCNNpp, PixelRNN, pixelcnnpp_port

FAMILIES: tuple[type[Model], ...] = (PixelCNN, GatedPixelCNN, PixelRNN, PixelCNNpp)
MODELS: dict[str, type[Model]] = {model.__name__: model for model in FAMILIES}
OF_LAYERS = ("n_layers", "n_residual", "n_resnets")  # settings that count layers, which have tensors
MOST_DILATED = 1 << 14
RESERVED = ("config", "model")  # names in the file's metadata
PACKAGED = {"mnist": "mnist_pixelcnn.safetensors"}


def save(model: Model, path: str | os.PathLike[str], **notes: str) -> None:
    """Writes the model's state dict, its config and notes to one safetensors file.

    model: one of ``models`` in any memory format, dtype, device and mode; it is not
    changed. notes: free text, given back by ``read_notes``. The file is replaced as a
    whole: an interrupted save keeps the old one.
    Raises ValueError for a model of another class, notes that are not strings or are called
    "config" or "model", and weights that are not finite; FileNotFoundError if the folder
    does not exist.
    """
    from safetensors.torch import save as to_bytes  # sampling does without it

    path = Path(path)
    config = getattr(model, "config", None)
    if not isinstance(config, dict) or type(model).__name__ not in MODELS:
        raise ValueError(
            f"{type(model).__name__} is none of {', '.join(MODELS)} with its config dict: save one of "
            "pixelcnn_fast.models; for DataParallel, save its .module"
        )
    for name, text in notes.items():
        if name in RESERVED or not isinstance(text, str):
            raise ValueError(
                f"note {name}={text!r}: notes are strings, under any name but 'config' and 'model'"
            )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; create it first")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    _check_finite(tensors, "the model")
    metadata = {**notes, "config": json.dumps(config), "model": type(model).__name__}
    with replacing(path) as file:
        file.write(to_bytes(tensors, metadata=metadata))


def load(path: str | os.PathLike[str]) -> Model:
    """Reads a checkpoint of ``save`` -> its model in eval mode, on the CPU, in the dtype it was saved in.

    path: a file, or "mnist" for the packaged class-conditional model of 28x28 digits.
    Loading is strict, except that the "module." that DataParallel puts before every key is removed.
    Raises FileNotFoundError for a missing file; ValueError for one that is truncated or not
    safetensors, has no usable config, has keys or shapes that do not fit it, holds NaN or
    infinite weights, or has masks other than the model's own (one that leaks lets an output
    see later pixels).
    """
    tensors, metadata = _read(path)
    tensors = _without_data_parallel(tensors)
    model = _build(path, metadata, tensors)
    _check_masks(path, tensors, model.state_dict())
    _check_finite(tensors, str(path))
    model.to(next(x.dtype for x in tensors.values() if x.is_floating_point()))
    model.load_state_dict(tensors)
    return model.eval()


def load_port(path: str | os.PathLike[str]) -> PixelCNNpp:
    """Reads what ``torch.save`` wrote of the state dict of PixelCNN++'s common PyTorch port
    (pclucas14/pixel-cnn-pp), of any size -> the same model in eval mode, on the CPU, in the
    file's dtype. ``models.pixelcnnpp_port`` says how keys and tensors correspond.

    Raises FileNotFoundError and ValueError as ``load`` does. No code in the file is run.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"path is a {type(path).__name__}, expected that of a file: torch.save(model.state_dict(), path) makes one"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: {'not a file' if Path(path).exists() else 'no such file'}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: torch.load can't read it ({str(error)[:300]}); fetch it again") from error
    if not isinstance(stored, dict) or not all(isinstance(x, Tensor) for x in stored.values()):
        raise ValueError(f"{path}: it is no state dict; write model.state_dict() of the port's PixelCNN")
    tensors = pixelcnnpp_port.renamed(_without_data_parallel(stored))
    try:
        config = pixelcnnpp_port.config_of(tensors)
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path}: it is no state dict of the port's PixelCNN, which has {error}") from error
    with torch.device("meta"):
        outline = PixelCNNpp(**config)
    _check_fit(path, tensors, outline.state_dict())
    _check_finite(tensors, str(path))
    model = PixelCNNpp(**config).to(tensors["nin_out.bias"].dtype)
    model.load_state_dict(pixelcnnpp_port.rearranged(tensors))
    return model.eval()


def _without_data_parallel(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the "module." that it puts before every key."""
    if not all(key.startswith("module.") for key in tensors):
        return tensors
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def read_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The notes that ``save`` was given; path and file errors are as for ``load``."""
    _, metadata = _read(path)
    return {name: text for name, text in metadata.items() if name not in RESERVED}


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if path in PACKAGED:
        with resources.as_file(resources.files("pixelcnn_fast") / "data" / PACKAGED[str(path)]) as file:
            return _read(file)
    if not Path(path).is_file():
        what = "not a file" if Path(path).exists() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; the packaged checkpoints are {', '.join(PACKAGED)}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a safetensors file, or a truncated one ({error}); fetch it again, or, if it was "
            "written by torch.save, load it into a PixelCNN and write that with pixelcnn_fast.checkpoint.save"
        ) from error


def _build(path: str | os.PathLike[str], metadata: dict[str, str], tensors: dict[str, Tensor]) -> Model:
    """It is built without memory first, since that of a broken config may be huge."""
    if "config" not in metadata:
        raise ValueError(
            f"{path}: its metadata has no 'config', so the network's size is unknown; load the tensors into "
            "a model of the right size and write that with pixelcnn_fast.checkpoint.save"
        )
    name = metadata.get("model", "PixelCNN")
    if name not in MODELS:
        raise ValueError(f"{path}: its model is {name[:80]!r}, but this version knows {', '.join(MODELS)}")
    if not tensors:
        raise ValueError(f"{path}: it holds no tensors: all those of its {name} are missing")
    most = max([len(tensors), *(size for x in tensors.values() for size in x.shape)])
    try:
        config = json.loads(metadata["config"])
        for setting, value in config.items():
            if isinstance(value, int) and value > (len(tensors) if setting in OF_LAYERS else most):
                raise ValueError(f"{setting} is {value}: the file's tensors are not as large or as many")
            if isinstance(value, list) and len(value) > len(tensors):  # one for each layer
                raise ValueError(f"{setting} has {len(value)} items: the file's tensors are not as many")
            if setting == "dilations" and not all(
                type(each) is int and 0 < each <= MOST_DILATED for each in value
            ):
                raise ValueError(f"{setting} are {value}: expected integers of 1...{MOST_DILATED}")
        with torch.device("meta"):
            outline = MODELS[name](**config)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{path}: config {metadata['config'][:300]!r} does not describe a {name} ({str(error)[:300]}); if you know "
            "its size, write it again with pixelcnn_fast.checkpoint.save"
        ) from error
    _check_fit(path, tensors, outline.state_dict())
    return MODELS[name](**config)


def _check_fit(path: str | os.PathLike[str], tensors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{path}: keys do not fit its config: {len(missing)} missing {missing[:3]}, {len(unexpected)} "
            f"unexpected {unexpected[:3]}; rename them to those of the model's own state_dict()"
        )
    for key, expected in own.items():
        stored = tensors[key]
        if stored.shape != expected.shape or stored.is_floating_point() != expected.is_floating_point():
            raise ValueError(
                f"{path}: {key} is {stored.dtype} {list(stored.shape)}, its config asks for {expected.dtype} "
                f"{list(expected.shape)}; is it the config of another model?"
            )


def _check_masks(path: str | os.PathLike[str], tensors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    for key, expected in own.items():
        stored = tensors[key]
        if key.endswith(".mask") and not torch.equal(stored.to(expected.dtype), expected):
            tap = [int(i) for i in (stored.to(expected.dtype) != expected).nonzero()[0]]
            raise ValueError(
                f"{path}: {key} differs from the model's own mask, first at {tap}, so it would see later "
                "pixels or miss earlier ones; train with the masks of pixelcnn_fast.nn"
            )


def _check_finite(tensors: dict[str, Tensor], owner: str) -> None:
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{owner}: {key} holds NaN or infinite values; go back to an earlier checkpoint")

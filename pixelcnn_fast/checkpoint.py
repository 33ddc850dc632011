"""Checkpoints: safetensors files of a model's weights, its config and free notes."""

from __future__ import annotations

import argparse
import os
import pickle
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from pixelcnn_fast.models import (
    GatedPixelCNN,
    Model,
    PixelCNN,
    PixelCNNpp,
    PixelRNN,
    PixelSNAIL,
    hub,
    pixelcnnpp_port,
    pixelsnail_port,
    stored,
)

FAMILIES: tuple[type[Model], ...] = (PixelCNN, GatedPixelCNN, PixelRNN, PixelCNNpp, PixelSNAIL)
MODELS: dict[str, type[Model]] = {model.__name__: model for model in FAMILIES}
ON_HUB = "hf://"
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
    if not isinstance(getattr(model, "config", None), dict) or type(model).__name__ not in MODELS:
        raise ValueError(
            f"{type(model).__name__} is none of {', '.join(MODELS)} with its config dict: save one of "
            "pixelcnn_fast.models; for DataParallel, save its .module"
        )
    stored.write(model, path, notes)


def load(path: str | os.PathLike[str]) -> Model:
    """Reads a checkpoint -> its model in eval mode, on the CPU, in the dtype it was saved in.

    path: a file of ``save``; a folder of ``models.*.save_pretrained``; "hf://user/name", such a
    repository on the Hugging Face Hub, for which huggingface_hub is needed; or "mnist" for the
    packaged class-conditional model of 28x28 digits.
    Loading is strict, except that the "module." that DataParallel puts before every key is removed.
    Raises FileNotFoundError for a missing file; ValueError for one that is truncated or not
    safetensors, has no usable config, has keys or shapes that do not fit it, holds NaN or
    infinite weights, or has masks other than the model's own (one that leaks lets an output
    see later pixels).
    """
    tensors, metadata = _read(path)
    if "config" not in metadata:
        raise ValueError(
            f"{path}: its metadata has no 'config', so the network's size is unknown; load the tensors into "
            "a model of the right size and write that with pixelcnn_fast.checkpoint.save"
        )
    name = metadata.get("model", "PixelCNN")
    if name not in MODELS:
        raise ValueError(f"{path}: its model is {name[:80]!r}, but this version knows {', '.join(MODELS)}")
    return stored.rebuilt(path, MODELS[name], metadata["config"], tensors)


def load_port(path: str | os.PathLike[str]) -> PixelCNNpp | PixelSNAIL:
    """Reads what ``torch.save`` wrote for other people's code -> the same model in eval mode, on the CPU, in the
    file's dtype: a state dict of PixelCNN++'s common PyTorch port (pclucas14/pixel-cnn-pp), or a
    checkpoint of a prior of VQ-VAE-2 codes (rosinality/vq-vae-2-pytorch: such a state dict, or
    one as the value of "model"), of any size. ``models.pixelcnnpp_port`` and
    ``models.pixelsnail_port`` say how keys and tensors correspond.

    Raises FileNotFoundError and ValueError as ``load`` does. No code in the file is run.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"path is a {type(path).__name__}, expected that of a file: torch.save(model.state_dict(), path) makes one"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: {'not a file' if Path(path).exists() else 'no such file'}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the settings beside "model"
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: torch.load can't read it ({str(error)[:300]}); fetch it again") from error
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(x, Tensor) and x.layout == torch.strided
        for key, x in found.items()
    ):
        raise ValueError(f"{path}: it is no state dict; write model.state_dict() of the port's PixelCNN")
    found = stored.without_data_parallel(found)
    is_snail = any(key.startswith("horizontal.") for key in found)
    port = pixelsnail_port if is_snail else pixelcnnpp_port
    tensors = port.renamed(found)
    try:
        config = port.config_of(tensors)
    except (KeyError, IndexError) as error:
        name = "PixelSNAIL" if is_snail else "PixelCNN"
        raise ValueError(f"{path}: it is no state dict of the port's {name}, which has {error}") from error
    with torch.device("meta"):
        outline = port.FAMILY(**config)
    stored.check_fit(path, tensors, outline.state_dict())
    stored.check_finite(tensors, str(path))
    model = port.FAMILY(**config).to(next(iter(tensors.values())).dtype)
    model.load_state_dict(port.rearranged(tensors))
    return model.eval()


def read_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The notes that ``save`` was given; path and file errors are as for ``load``."""
    _, metadata = _read(path)
    return {name: text for name, text in metadata.items() if name not in stored.RESERVED}


def _read(path: str | os.PathLike[str]) -> tuple[stored.Tensors, dict[str, str]]:
    if path in PACKAGED:
        with resources.as_file(resources.files("pixelcnn_fast") / "data" / PACKAGED[str(path)]) as file:
            return stored.read(file)
    if isinstance(path, str) and path.startswith(ON_HUB):
        return hub.read(hub.fetched(path.removeprefix(ON_HUB)))
    if hub.is_folder(path):
        return hub.read(path)
    if not Path(path).is_file():
        what = "not a file" if Path(path).exists() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; the packaged checkpoints are {', '.join(PACKAGED)}")
    return stored.read(path)

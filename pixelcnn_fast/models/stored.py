"""Files of a model's weights with its config: how they are written, read and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pixelcnn_fast.files import replacing

# Settings that count layers, which have tensors.
OF_LAYERS = (
    *("n_layers", "n_residual", "n_resnets"),
    *("n_blocks", "n_res_blocks", "n_out_res_blocks", "n_cond_res_blocks"),
)
MOST_DILATED = 1 << 14
RESERVED = ("config", "model")  # names in the file's metadata
Tensors = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)


def write(model: nn.Module, path: str | os.PathLike[str], notes: Mapping[str, str]) -> None:
    """A safetensors file of a model with its config; ``checkpoint.save`` says what is refused."""
    from safetensors.torch import save as to_bytes  # sampling does without it

    path = Path(path)
    for name, text in notes.items():
        if name in RESERVED or not isinstance(text, str):
            raise ValueError(
                f"note {name}={text!r}: notes are strings, under any name but 'config' and 'model'"
            )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; create it first")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    check_finite(tensors, "the model")
    metadata = {**notes, "config": json.dumps(model.config), "model": type(model).__name__}
    with replacing(path) as file:
        file.write(to_bytes(tensors, metadata=metadata))


def read(path: str | os.PathLike[str]) -> tuple[Tensors, dict[str, str]]:
    """The tensors and metadata of a safetensors file. Raises ValueError if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a safetensors file, or a truncated one ({error}); fetch it again, or, if it was "
            "written by torch.save, load it into a PixelCNN and write that with pixelcnn_fast.checkpoint.save"
        ) from error


def rebuilt(path: str | os.PathLike[str], family: type[M], config: str, tensors: Tensors) -> M:
    """The model that these are of, in eval mode, once they are checked: see ``checkpoint.load``."""
    tensors = without_data_parallel(tensors)
    model = _build(path, family, config, tensors)
    _check_masks(path, tensors, model.state_dict())
    check_finite(tensors, str(path))
    model.to(next(x.dtype for x in tensors.values() if x.is_floating_point()))
    model.load_state_dict(tensors)
    return model.eval()


def without_data_parallel(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the "module." that it puts before every key."""
    if not all(key.startswith("module.") for key in tensors):
        return tensors
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _build(path: str | os.PathLike[str], family: type[M], text: str, tensors: Tensors) -> M:
    """It is built without memory first, since that of a broken config may be huge. text: its config."""
    name = family.__name__
    if not tensors:
        raise ValueError(f"{path}: it holds no tensors: all those of its {name} are missing")
    most = max([len(tensors), *(size for x in tensors.values() for size in x.shape)])
    try:
        config = json.loads(text)
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
            outline = family(**config)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{path}: config {text[:300]!r} does not describe a {name} ({str(error)[:300]}); if you know "
            "its size, write it again with pixelcnn_fast.checkpoint.save"
        ) from error
    check_fit(path, tensors, outline.state_dict())
    return family(**config)


def check_fit(path: str | os.PathLike[str], tensors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
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


def check_finite(tensors: dict[str, Tensor], owner: str) -> None:
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{owner}: {key} holds NaN or infinite values; go back to an earlier checkpoint")

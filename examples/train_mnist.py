"""Train a model on MNIST, on a CPU or a GPU, and keep the best checkpoint.

    python examples/train_mnist.py --torchvision-root ~/data --epochs 15
    python examples/train_mnist.py --npz mnist_10k.npz --minutes 45
    python examples/train_mnist.py --npz mnist_10k.npz --minutes 55 --model diagonal_bilstm
    python examples/train_mnist.py --npz mnist_10k.npz --epochs 10 --model pixelcnnpp

A class-conditional PixelCNN or PixelCNN++ learns grey levels. A PixelRNN (--model row_lstm or diagonal_bilstm) learns
binarised digits without labels: each time that an image is shown, a pixel is white with a probability of its level /
255; the held-out images are drawn once, by a fixed seed. The result loads with ``pixelcnn_fast.checkpoint.load``.
Ctrl-C stops early and keeps the best epoch so far.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from pixelcnn_fast import checkpoint
from pixelcnn_fast.likelihood import bits_per_dim, nll
from pixelcnn_fast.models import PixelCNN, PixelCNNpp, PixelRNN

WARMUP = 0.03  # share of the whole run
EMA_DECAY = 0.999
HIDDEN = {"pixelcnn": 64, "pixelcnnpp": 24, "row_lstm": 32, "diagonal_bilstm": 16}  # by model
RESIDUAL = {"pixelcnn": 4, "pixelcnnpp": 1}
MIXTURES = 5  # of a PixelCNN++
HELD_OUT_SEED = 2016  # of the held-out images' binarisation

Model = PixelCNN | PixelCNNpp | PixelRNN


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Run the command line -> held-out bits/dim after each epoch."""
    parser = _parser()
    args = parser.parse_args(argv)
    args.hidden = args.hidden or HIDDEN[args.model]
    args.residual = args.residual or RESIDUAL.get(args.model, 1)
    args.out = args.out or Path(f"mnist_{args.model}.safetensors")
    try:
        images, labels = load_npz(args.npz) if args.npz else load_torchvision(args.torchvision_root)
        check_options(args, len(images))
        torch.manual_seed(args.seed)
        model = initial_model(args, images, labels)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    return train(args, model, images, labels)


def check_options(args: argparse.Namespace, n_images: int) -> None:
    """Raises ValueError if --held-out leaves none of n_images, for options out of range, FileNotFoundError if --out
    has no folder, or is one."""
    if not 0 < args.held_out < n_images:
        raise ValueError(
            f"--held-out {args.held_out} of {n_images} images: none is left to "
            f"{'judge by' if args.held_out < 1 else 'train on'}"
        )
    if args.out.is_dir():
        raise FileNotFoundError(f"--out {args.out} is a folder: name a file in it")
    given = vars(args)
    for option in ("batch", "epochs", "layers", "hidden"):
        if given.get(option, 1) < 1:
            raise ValueError(f"--{option} {given[option]}: expected 1 or more")
    if not 0 < given.get("lr", 1) < math.inf:
        raise ValueError(f"--lr {args.lr}: expected a positive number")
    if not args.out.parent.is_dir():
        raise FileNotFoundError(f"--out {args.out}: there is no folder {args.out.parent}; create it first")


def initial_model(args: argparse.Namespace, images: Tensor, labels: Tensor) -> Model:
    """A new model for these images, or that of --resume. Raises ValueError if its size is not the one asked for."""
    model: Model
    n_classes = int(labels.max()) + 1
    if args.model == "pixelcnn":
        model = PixelCNN(1, args.hidden, args.residual, n_classes)
    elif args.model == "pixelcnnpp":
        model = PixelCNNpp(1, args.hidden, args.residual, MIXTURES, dropout=0, n_classes=n_classes)
        first = slice(min(100, len(images) - args.held_out))
        model.initialise_from(images[first], labels[first])
    else:
        model = PixelRNN(args.model, 1, args.hidden, args.layers, levels=2)
    if args.resume:
        resumed = checkpoint.load(args.resume)
        if type(resumed) is not type(model) or resumed.config != model.config:
            found, asked = (f"{type(m).__name__} with {m.config}" for m in (resumed, model))
            raise ValueError(f"--resume {args.resume}: it is a {found}, and a {asked} was asked for")
        model = resumed
    return model


def binarised(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """images: uint8, any shape -> levels 0 and 1, uint8: 1 with a probability of the image's level / 255."""
    return (torch.rand(images.shape, generator=generator) < images / 255).to(torch.uint8)


def train(args: argparse.Namespace, model: Model, images: Tensor, labels: Tensor) -> list[float]:
    """Trains by Adam under one cosine of the learning rate; a moving average of the weights is judged and saved.

    images: [N, 1, H, W] uint8; labels: [N] -> held-out bits/dim after each epoch; the best is in args.out.
    """
    is_binary = isinstance(model, PixelRNN)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    to: Any = model.to(device).to  # some releases of torch have no annotation of memory_format
    model = to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    data = TensorDataset(images, labels)
    split = len(data) - args.held_out
    training = DataLoader(TensorDataset(*data[:split]), args.batch, shuffle=True)
    fixed = binarised(images[split:], torch.Generator().manual_seed(HELD_OUT_SEED))
    held_out = DataLoader(TensorDataset(fixed) if is_binary else TensorDataset(*data[split:]), 100)
    dimensions = images[0].numel()

    history: list[float] = []
    start, step = time.monotonic(), 0
    try:
        for epoch in range(1, args.epochs + 1):
            model.train()
            progress = tqdm(training, desc=f"epoch {epoch}", unit="batch")
            for batch_images, batch_labels in progress:
                done = step / (args.epochs * len(training))
                if args.minutes:
                    done = max(done, (time.monotonic() - start) / (60 * args.minutes))
                if done >= 1:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * schedule(done)
                batch_images = binarised(batch_images) if is_binary else batch_images
                batch_images = batch_images.to(device, memory_format=torch.channels_last)
                given = () if is_binary else (batch_labels.to(device),)
                loss = nll(model, batch_images, *given).mean() / dimensions
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                follow(average, model, decay=min(EMA_DECAY, step / (step + 10)))
                if step % 10 == 0:
                    progress.set_postfix_str(f"{loss.item() / math.log(2):.3f} bits/dim")
            progress.close()
            bits = bits_per_dim(average, held_out)
            minutes = (time.monotonic() - start) / 60
            best = not history or bits < min(history)
            history.append(bits)
            mark = " (best)" if best else ""
            nats = bits * math.log(2) * dimensions
            shown = f"{nats:.2f} nats per image, " * is_binary + f"{bits:.4f} bits/dim"
            print(f"epoch {epoch}: held-out {shown} after {minutes:.1f} min{mark}", flush=True)
            if best:
                checkpoint.save(
                    average,
                    args.out,
                    data="binarised MNIST" if is_binary else "MNIST",
                    held_out=f"{args.held_out} images",
                    seed=str(args.seed),
                    bits_per_dim=f"{bits:.4f}",
                    nats_per_image=f"{nats:.2f}",
                    epoch=str(epoch),
                    minutes=f"{minutes:.1f}",
                )
            if args.minutes and minutes >= args.minutes:
                break
    except KeyboardInterrupt:
        print("stopped early")
    if history:
        best_nats = f"{min(history) * math.log(2) * dimensions:.2f} nats per image, " * is_binary
        print(f"best epoch: {best_nats}{min(history):.4f} bits/dim, in {args.out}")
    else:
        print("no epoch was finished, so nothing is saved")
    return history


def schedule(done: float) -> float:
    """Share of the peak learning rate after the share ``done`` of the run: linear warm-up, then a cosine."""
    if done < WARMUP:
        return done / WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average's weights and batch-norm statistics towards the model's by 1 - decay."""
    for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:
            mean.copy_(now)


def load_npz(path: Path) -> tuple[Tensor, Tensor]:
    """Read arrays images (uint8 [N, H, W]) and labels (integers [N]) -> [N, 1, H, W] uint8, [N] int64.

    Raises FileNotFoundError for a missing file; ValueError if it is no .npz or holds other arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:  # for an .npy, a bare array, this is a TypeError
            if missing := [name for name in ("images", "labels") if name not in arrays]:
                raise ValueError(f"it has no array {' and no array '.join(missing)}, only {sorted(arrays)}")
            images, labels = arrays["images"], arrays["labels"]
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}; write it with numpy.savez(path, images=, labels=)") from error
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(f"{path}: images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W]")
    n = len(images)
    if labels.shape != (n,) or labels.dtype.kind not in "iu" or (n and labels.min() < 0):
        raise ValueError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}, expected {n} integers from 0 on"
        )
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))


def load_torchvision(root: Path) -> tuple[Tensor, Tensor]:
    """MNIST's 60,000 training images through torchvision, downloaded to root if absent -> as ``load_npz``.

    Raises ImportError without torchvision; RuntimeError if the download fails.
    """
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise ImportError(f"{error}; pip install torchvision, or give a file with --npz") from error
    data = MNIST(root, train=True, download=True)
    return data.data[:, None], data.targets


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a class-conditional PixelCNN or PixelCNN++ on MNIST, or a PixelRNN on binarised MNIST; keep "
        "the epoch of best held-out bits/dim.",
        epilog="Load the result with pixelcnn_fast.checkpoint.load(OUT).",
        formatter_class=Defaults,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--torchvision-root",
        type=Path,
        metavar="DIR",
        help="folder of torchvision's MNIST; downloaded there (12 MB) if absent",
    )
    source.add_argument(
        "--npz",
        type=Path,
        metavar="FILE",
        help="a numpy .npz with uint8 images [N, H, W] and integer labels [N]",
    )
    add = parser.add_argument
    add(
        "--held-out",
        type=int,
        default=1000,
        metavar="N",
        help="the last N images are never trained on: they give the bits/dim after each epoch",
    )
    add("--model", choices=HIDDEN, default="pixelcnn", help="pixelcnn, pixelcnnpp, or the PixelRNN's kind")
    add(
        "--hidden",
        type=int,
        help="channels of every layer; time grows with its square (default: "
        f"{', '.join(f'{name} {hidden}' for name, hidden in HIDDEN.items())})",
    )
    add(
        "--residual",
        type=int,
        help="residual blocks of a PixelCNN: each sees 2 rows further up; or gated resnets of each stream of a "
        f"PixelCNN++ on each of three grids (default: {', '.join(f'{name} {n}' for name, n in RESIDUAL.items())})",
    )
    add("--layers", type=int, default=7, help="layers of a PixelRNN")
    add("--epochs", type=int, default=15, help="passes over the training images")
    add(
        "--minutes",
        type=float,
        default=0,
        help="stop after this many minutes, when the learning rate has reached 0; 0: only --epochs counts",
    )
    add("--batch", type=int, default=16, help="images per step")
    add("--lr", type=float, default=2e-3, help="peak learning rate of Adam, after the warm-up")
    add("--resume", type=Path, metavar="FILE", help="continue from this checkpoint's weights")
    add("--seed", type=int, default=0, help="seed of weights and of the order of images")
    add("--out", type=Path, help="checkpoint to write (default: mnist_MODEL.safetensors)")
    return parser


if __name__ == "__main__":
    main()

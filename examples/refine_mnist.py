"""Teach a trained PixelCNN from its own samples, on a CPU, so that they look more like the digits it was trained on.

    python examples/refine_mnist.py --npz mnist_10k.npz --out refined.safetensors

Training by likelihood only ever continues real images. Sampling continues the model's own, where small errors pile up
that training never showed it. Here the model samples, and after each strip of rows a critic says how real the image is
so far. What made an image more real than expected then becomes more likely, and the rest less likely.
``pixelcnn_fast.checkpoint`` loads the result. Ctrl-C stops early and keeps the last round.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm
from train_mnist import check_options, follow, load_npz

from pixelcnn_fast import Sampler, checkpoint
from pixelcnn_fast.likelihood import bits_per_dim

STRIP = 4  # rows
TURNS = 5  # in a round; each samples, judges the samples, and trains critic and model
REMEMBERED = 8  # turns whose samples the critic trains on
CRITIC_BATCH = 64  # this many real images, and as many samples
CERTAINTY = 5.0  # nats; the critic is not believed beyond this
FORESIGHT = 0.9  # how much of a later strip's merit a strip gets, per strip between them
WARMUP_STEPS = 50


class Critic(nn.Module):
    """Tells real images of each class from samples, having seen only the first rows.

    images: [N, 1, H, W] uint8; rows: [N] integers 0...H -> logits [N, n_classes + 1], the last one for "a sample".
    """

    def __init__(self, shape: torch.Size, n_classes: int) -> None:
        super().__init__()
        self.samples = n_classes  # the class of samples
        self.net = nn.Sequential(
            nn.Conv2d(2, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.LazyLinear(128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, n_classes + 1),
        )
        self(torch.zeros(1, *shape), torch.zeros(1))  # gives the lazy layer its size
        self.optimizer = torch.optim.Adam(self.parameters(), 5e-4, betas=(0.5, 0.99))

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        seen = (torch.arange(images.shape[2]) < rows[:, None]).float()[:, None, :, None].expand(images.shape)
        return self.net(
            torch.cat([images * seen / 255, seen], 1).contiguous(memory_format=torch.channels_last)
        )

    def learn(self, images: Tensor, labels: Tensor, samples: Tensor, steps: int) -> None:
        """Some steps of cross-entropy on real images and samples, cut at random rows and shifted alike by a pixel."""
        self.train()
        height = images.shape[2]
        for _ in range(steps):
            real = torch.randint(len(images), (CRITIC_BATCH,))
            batch = torch.cat([images[real], samples[torch.randint(len(samples), (CRITIC_BATCH,))]])
            batch = batch.roll(torch.randint(-1, 2, (2,)).tolist(), (2, 3))
            rows = STRIP * torch.randint(math.ceil(height / STRIP) + 1, (len(batch),))
            target = torch.cat([labels[real], torch.full((CRITIC_BATCH,), self.samples)])
            loss = F.cross_entropy(self(batch, rows), target)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def realness(self, samples: Tensor, labels: Tensor) -> Tensor:
        """log p(real, of this label) - log p(a sample), before the first strip and after each: [N, strips + 1]."""
        self.eval()
        scores = []
        for strip in range(math.ceil(samples.shape[2] / STRIP) + 1):
            logits = self(samples, torch.full((len(samples),), STRIP * strip))
            scores.append(logits.gather(1, labels[:, None])[:, 0] - logits[:, self.samples])
        return torch.stack(scores, 1).clamp(-CERTAINTY, CERTAINTY)


def merits(realness: Tensor) -> Tensor:
    """How much each strip, with what followed from it, raised its image's score above those of the other images.

    realness: [N, strips + 1] -> [N, strips], of mean 0 over the images.
    """
    gains = realness.diff(dim=1)
    for strip in reversed(range(gains.shape[1] - 1)):
        gains[:, strip] += FORESIGHT * gains[:, strip + 1]
    return gains - gains.mean(0)


def refine(args: argparse.Namespace, model: checkpoint.Model, images: Tensor, labels: Tensor) -> list[float]:
    """Policy gradient on the critic's logits, along with the likelihood of real images to stay close to the data.

    A sample's logit estimates ln p(data) - ln p(model), so this lowers KL(model || data), which counts what the model
    draws but the data lack; likelihood alone lowers KL(data || model), which hardly counts it.
    images: [N, 1, H, W] uint8; labels: [N] -> held-out bits/dim after each round. A moving average of the weights is
    saved in args.out. Batch norm keeps its statistics: what is trained is the very function that samples.
    """
    to: Any = model.eval().to  # some releases of torch have no annotation of memory_format
    model = to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    split = len(images) - args.held_out
    held_out = DataLoader(TensorDataset(images[split:], labels[split:]), 100)
    images, labels = images[:split], labels[:split]
    channels, height, width = images.shape[1:]
    n_classes = model.n_classes
    assert n_classes is not None, "main has compared it with the labels"
    critic = Critic(images.shape[1:], n_classes)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        classes = torch.randint(n_classes, (n,))
        return Sampler(model, (channels, height, width)).sample(n, classes), classes

    history: list[float] = []
    step = 0
    try:
        print(f"drawing {REMEMBERED * args.samples} samples for the critic, and training it", flush=True)
        memory = deque(draw(REMEMBERED * args.samples)[0].split(args.samples), maxlen=REMEMBERED)
        critic.learn(images, labels, torch.cat(list(memory)), args.critic_steps)
        for number in range(1, args.rounds + 1):
            progress = tqdm(range(TURNS), desc=f"round {number}", unit="turn")
            for _ in progress:
                samples, classes = draw(args.samples)
                realness = critic.realness(samples, classes)
                merit = merits(realness)
                progress.set_postfix_str(f"realness {realness[:, -1].mean():.2f} nats")
                memory.append(samples)
                critic.learn(images, labels, torch.cat(list(memory)), steps=16)
                telling = merit.square().sum(1).topk(math.ceil(len(merit) / 2)).indices
                for part in telling[torch.randperm(len(telling))].split(args.batch):
                    step += 1
                    real = torch.randint(split, (math.ceil(3 * len(part) / 8),))
                    weight = merit[part].repeat_interleave(STRIP, 1)[:, : images.shape[2]]
                    weight = torch.cat([torch.ones(len(real), images.shape[2]), weight])
                    batch = torch.cat([images[real], samples[part]]).contiguous(
                        memory_format=torch.channels_last
                    )
                    logits = model(batch, torch.cat([labels[real], classes[part]]))
                    nll = F.cross_entropy(logits.movedim(-1, 1), batch.long(), reduction="none")
                    loss = (weight[:, None, :, None] * nll).mean()
                    optimizer.param_groups[0]["lr"] = args.lr * min(1, step / WARMUP_STEPS)
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    follow(average, model, decay=min(args.average, step / (step + 10)))
            bits = bits_per_dim(average, held_out)
            history.append(bits)
            print(f"round {number}: held-out {bits:.4f} bits/dim", flush=True)
            checkpoint.save(
                average,
                args.out,
                data="MNIST",
                held_out=f"{args.held_out} images",
                seed=str(args.seed),
                bits_per_dim=f"{bits:.4f}",
                rounds=str(number),
                refined_from=str(args.checkpoint),
            )
    except KeyboardInterrupt:
        print("stopped early")
    print(
        f"{len(history)} rounds, the last in {args.out}"
        if history
        else "no round was finished, so nothing is saved"
    )
    return history


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Run the command line -> held-out bits/dim after each round."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        images, labels = load_npz(args.npz)
        check_options(args, len(images))
        model = checkpoint.load(args.checkpoint)
        if (model.n_classes or 0) <= int(labels.max()):
            raise ValueError(
                f"--checkpoint {args.checkpoint} has n_classes={model.n_classes}, but the labels reach "
                f"{int(labels.max())}: train one on these data with train_mnist.py"
            )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.manual_seed(args.seed)
    return refine(args, model, images, labels)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Refine a class-conditional PixelCNN by what a critic says of its samples; keep the last round.",
        epilog="Look at the result: python -m pixelcnn_fast sample --checkpoint OUT. Load it: checkpoint.load(OUT).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--npz",
        type=Path,
        metavar="FILE",
        required=True,
        help="the data that the model was trained on: uint8 images [N, H, W] and integer labels [N]",
    )
    add(
        "--held-out",
        type=int,
        default=1000,
        metavar="N",
        help="the last N images are never trained on, as in train_mnist.py: they give the bits/dim of each round",
    )
    add(
        "--checkpoint",
        default="mnist",
        metavar="FILE",
        help="what to start from; 'mnist' comes with the package",
    )
    add("--rounds", type=int, default=20, help=f"rounds of {TURNS} turns; each a minute or two on 2 cores")
    add(
        "--samples",
        type=int,
        default=512,
        help="images that a turn draws; the model learns from the more telling half",
    )
    add(
        "--critic-steps",
        type=int,
        default=800,
        help="steps of the critic before the first round; 16 more in each turn",
    )
    add(
        "--batch",
        type=int,
        default=128,
        help="samples per step of the model; 3 real images join every 8 of them",
    )
    add(
        "--lr",
        type=float,
        default=1e-4,
        help="learning rate of Adam; the gradients are noisy, and with 6e-4 the model wanders off",
    )
    add("--average", type=float, default=0.99, help="decay per step of the moving average that is saved")
    add("--seed", type=int, default=0, help="seed of everything that is drawn")
    add("--out", type=Path, default=Path("refined.safetensors"), help="checkpoint to write after each round")
    return parser


if __name__ == "__main__":
    main()

"""Each loop of docs/migration.md, run as it stands with a call's noise, gives what the call gives."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, heads, likelihood
from pixelcnn_fast.models import PixelCNNpp
from pixelcnn_fast.nn import MaskedConv2d
from tests.docs import DOCS, snippets
from tests.tiers import few

N, H, W = 3, 5, 4
SECTIONS = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
PAIRS = {title: snippets(text) for title, text in SECTIONS.findall((DOCS / "migration.md").read_text())}


class Small(nn.Module):
    """Two layers, which see four rows above. codes: their number, if it takes codes; classes: of labels."""

    def __init__(self, outputs: int, channels: int = 1, codes: int = 0, classes: int = 0) -> None:
        super().__init__()
        self.codes = nn.Embedding(codes, 4) if codes else None
        self.first = MaskedConv2d(4 if codes else channels, 8, 5, "A")
        self.labels = nn.Embedding(classes, 8) if classes else None
        self.second, self.last = MaskedConv2d(8, 8, 5, "B"), nn.Conv2d(8, outputs, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.first(x if self.codes is None else self.codes(x).movedim(-1, 1))
        if self.labels is not None:
            x = x + self.labels(labels)[:, :, None, None]
        return self.last(self.second(F.relu(x)))


class OfClasses(Small):
    """Takes labels always, as the signature shows."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]  # as this signature has it
        return super().forward(x, labels)


def reader(model: nn.Module, **others: Any) -> dict[str, Any]:
    return {
        "model": model.eval(), "n": N, "H": H, "W": W, "torch": torch, "math": math, "F": F, "Sampler": Sampler,
        "heads": heads, "likelihood": likelihood, "labels": torch.arange(N) % 4, **others,
    }  # fmt: skip


def half_known() -> dict[str, Any]:
    given = torch.randint(256, (N, 1, H, W)) / 255
    return reader(Small(256), given=given, known=torch.rand(H, W) < 0.5)


def data() -> dict[str, Any]:
    batches = [(torch.randint(256, (n, 1, H, W)) / 255, torch.randint(4, (n,))) for n in (3, 2)]
    return reader(OfClasses(256, classes=4), loader=batches)


# By heading: what the reader has, and the name of what both snippets make.
CASES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "Spins on a lattice": ("spins", lambda: reader(nn.Sequential(Small(1), nn.Sigmoid()), L=5)),
    "Pixels of one channel": ("images", lambda: reader(Small(256))),
    "Colours, one after the other": ("images", lambda: reader(Small(768, 3))),
    "By class, cooler, and only the likeliest levels": ("images", lambda: reader(OfClasses(256, classes=4))),
    "Completing images": ("images", half_known),
    "A prior over the codes of a VQ-VAE": ("codes", lambda: reader(OfClasses(512, codes=512, classes=4))),
    "A loop that crops, or keeps caches": ("images", lambda: reader(Small(256))),
    "Bits per dimension": ("bits", data),
    "PixelCNN++'s mixture of logistics": ("images", lambda: reader(PixelCNNpp(n_filters=4, n_resnets=1))),
}


def test_every_pair_is_tried() -> None:
    assert PAIRS.keys() == CASES.keys()
    assert all(len(pair) == 2 for pair in PAIRS.values())


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("title", few(CASES, 8))
def test_loop_and_call_give_the_same(title: str, in_float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, has), (loop, call) = CASES[title], PAIRS[title]
    torch.manual_seed(0)
    names = has()
    torch.manual_seed(1)
    exec(call, names)
    given = names[name]
    shape = names["sampler"].noise_shape if "sampler" in names else (1, 1, 1)
    torch.manual_seed(1)  # what the call has drawn, in the order of a loop: pixel by pixel
    noise = iter(torch.rand(N, *shape).permute(2, 3, 1, 0).reshape(-1, N))
    monkeypatch.setattr(torch, "multinomial", lambda p, _: (p.cumsum(1) <= next(noise)[:, None]).sum(1, True))
    monkeypatch.setattr(torch, "bernoulli", lambda p: (next(noise)[:, None] >= 1 - p).to(p))
    monkeypatch.setattr(torch, "rand_like", lambda x: next(noise).to(x))
    exec(loop, names)
    made = torch.as_tensor(names[name])
    assert next(noise, None) is None or name == "bits"
    if isinstance(given, Tensor) and given.dtype == torch.uint8:
        made = (made * 255).round().byte()
    torch.testing.assert_close(torch.as_tensor(given).to(made), made, rtol=1e-6, atol=1e-6)

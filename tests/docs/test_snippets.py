"""The Python snippets of the README, and of pages that can run as they stand, run one after the other."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixelcnn_fast
from pixelcnn_fast import Sampler
from pixelcnn_fast.models import PixelCNN, PixelCNNpp
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.passes import pipeline
from tests.docs import snippets
from tests.tiers import few

ROOT = Path(__file__).parents[2]
SHAPE = (3, 32, 32)


class Prior(nn.Module):
    """Of codes, given those of a coarser level."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.coarse = nn.Embedding(512, 4), nn.Embedding(512, 4)
        self.first, self.last = MaskedConv2d(4, 4, 3, "A"), nn.Conv2d(4, 512, 1)

    def forward(self, codes: Tensor, coarse: Tensor) -> Tensor:
        given = self.coarse(coarse).permute(0, 3, 1, 2)
        return self.last(
            self.first(self.codes(codes).permute(0, 3, 1, 2)) + F.interpolate(given, scale_factor=2)
        )


def small(n_classes: int | None = None) -> PixelCNN:
    return PixelCNN(hidden_channels=8, n_residual=1, n_classes=n_classes).eval()


def model_and_labels() -> dict[str, Any]:
    labels, known = torch.arange(16) % 10, torch.rand(32, 32) < 0.5
    coarse = torch.randint(512, (8, 16, 16))
    return {
        "model": small(10),
        "labels": labels,
        "known": known,
        "prior": Prior(),
        "coarse": coarse,
        "torch": torch,
    }


def in_training() -> dict[str, Any]:
    model = small()
    return {"model": model, "sampler": Sampler(model, SHAPE), "labels": None}


def of_a_data_set() -> dict[str, Any]:
    """of_reals: small, so that what it draws stays small."""
    levels, labels = torch.randint(256, (3, 1, 28, 28)), torch.arange(3)
    of_reals = MaskedConv2d(2, 4, 3, "A")
    of_reals.weight.data *= 0.1
    model = PixelCNN(1, hidden_channels=8, n_residual=1, n_classes=10).eval()
    images = levels / 255
    return {
        "model": model, "loader": [(images, labels)], "images": images, "levels": levels, "labels": labels,
        "of_reals": of_reals, "torch": torch,
    }  # fmt: skip


# By page: what its reader has.
READERS: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": dict,
    "docs/start.md": dict,
    "docs/questions.md": lambda: {**in_training(), "torch": torch, "F": F, "functools": functools},
    "docs/your_model.md": model_and_labels,
    "docs/training.md": in_training,
    "docs/masks.md": lambda: {"pixelcnn_fast": pixelcnn_fast, "model": small()},
    "docs/layers.md": lambda: {"pixelcnn_fast": pixelcnn_fast, "model": small()},
    "docs/likelihoods.md": of_a_data_set,
    "docs/models.md": dict,
    "docs/jobs.md": lambda: {"model": small(10), "n": 3, "seed": 0, "labels": torch.arange(10)},
    "docs/architecture.md": lambda: dict(nn=nn, MaskedConv2d=MaskedConv2d, Tensor=Tensor, F=F, model=small()),
    "docs/pixelcnnpp.md": lambda: {"port": PixelCNNpp(n_filters=8, n_resnets=1).eval()},
}


@pytest.mark.parametrize("page", few([*READERS], 1))
def test_snippets_run_as_they_stand(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "watches", [*pipeline.watches])
    torch.manual_seed(0)
    names = READERS[page]()
    codes = snippets((ROOT / page).read_text())
    assert codes
    for number, code in enumerate(codes, 1):
        exec(compile(code, f"{page}, snippet {number}", "exec"), names)
    if page == "README.md":
        assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120

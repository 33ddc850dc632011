"""The recipes: notebooks, which check what they claim, run here in their small mode."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, heads
from pixelcnn_fast.nn import MaskedConv2d
from tests.docs import DOCS, snippets
from tests.tiers import thorough

RECIPES = sorted((DOCS / "recipes").glob("*.ipynb"))

OUTER = [f"conv_{stack}stack.{name}" for stack in "vh" for name in ("mask", "conv.weight", "conv.bias")]
LAYER = [
    f"conv_{stack}.{name}" for stack in ("vert", "horiz") for name in ("mask", "conv.weight", "conv.bias")
]
LAYER += [f"conv_{name}.{kind}" for name in ("vert_to_horiz", "horiz_1x1") for kind in ("weight", "bias")]
PUBLIC_KEYS = [*OUTER, "conv_out.weight", "conv_out.bias", *(f"conv_layers.3.{name}" for name in LAYER)]


def cells_of(recipe: Path, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The cells of a kind: what each says, and all of it."""
    cells = json.loads(recipe.read_text())["cells"]
    return [("".join(cell["source"]), cell) for cell in cells if cell["cell_type"] == kind]


@thorough
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_run_and_what_they_check_holds(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMALL", "1")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names: dict[str, Any] = {}
    with plt.rc_context({"backend": "agg"}):
        for number, (code, _) in enumerate(cells_of(recipe, "code"), 1):
            exec(compile(code, f"{recipe.name}, code cell {number}", "exec"), names)
    if recipe.stem == "public_checkpoint":  # its stand-in has the keys of the public file
        keys = {key for key in names["stored"]["state_dict"] if "conv_layers.3" in key or "layers" not in key}
        assert keys == {*PUBLIC_KEYS} and len(names["stored"]["state_dict"]) == 78


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_are_stored_without_outputs_and_figures_described(recipe: Path) -> None:
    for code, cell in cells_of(recipe, "code"):
        assert not cell.get("outputs") and not cell.get("execution_count"), (
            "clear the outputs before a commit"
        )
        if "plt.show()" in code:
            image = cell["metadata"].get("mystnb", {}).get("image", {})
            assert len(image.get("alt", "")) >= 10, (
                "describe the figure in the cell's metadata: mystnb, image, alt"
            )


class OfTheField(nn.Module):
    """Called as stat-mech-van's network is: spins ±1 -> probabilities of +1."""

    def __init__(self, L: int, net_width: int, z2: bool, **others: Any) -> None:
        super().__init__()
        self.first, self.last = MaskedConv2d(1, net_width, 5, "A"), nn.Conv2d(net_width, 1, 1)

    def forward(self, spins: Tensor) -> Tensor:
        return torch.sigmoid(self.last(torch.relu(self.first(spins))))

    def log_prob(self, spins: Tensor) -> Tensor:
        either = [-F.binary_cross_entropy(self(x), (x + 1) / 2, reduction="none") for x in (spins, -spins)]
        return torch.stack(either).sum((2, 3, 4)).logsumexp(0) - torch.tensor(2.0).log()


def test_the_networks_of_lattice_physics_are_sampled_as_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pixelcnn", SimpleNamespace(PixelCNN=OfTheField))
    (code,) = (
        found
        for text, _ in cells_of(DOCS / "recipes" / "ising.ipynb", "markdown")
        for found in snippets(text)
    )
    names: dict[str, Any] = {"torch": torch, "Sampler": Sampler, "heads": heads}
    torch.manual_seed(0)
    exec(code, names)
    spins, log_q = names["spins"], names["log_q"]
    assert spins.unique().tolist() == [-1, 1]
    once = [names["sampler"].log_prob(((x + 1) / 2).long()) for x in (spins, -spins)]
    torch.testing.assert_close(
        log_q.double(), torch.stack(once).double().exp().mean(0).log(), rtol=1e-4, atol=0
    )

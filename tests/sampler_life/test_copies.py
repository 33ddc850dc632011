"""Copies of samplers, pickles, and what is printed."""

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, models
from pixelcnn_fast.nn import MaskedConv2d
from tests.refresh.test_weights import trained_on
from tests.sampler_life.common import SHAPE, noise, pixelcnn, silence, take
from tests.tiers import thorough


class Pair(models.PixelCNN):
    """It returns something beside its logits."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        return images, super().forward(images, labels)


class Hooked(models.PixelCNN):
    """It holds a function that can't be pickled."""

    def __init__(self) -> None:
        super().__init__(1, 8, 0, n_classes=3)
        self.scale = lambda x: x * 2

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.scale(super().forward(images, labels))


def through(copied: Callable[[Sampler], Sampler]) -> tuple[Sampler, Sampler, nn.Module]:
    torch.manual_seed(0)
    model = models.PixelCNN(1, 8, 0, n_classes=3).eval()
    sampler = Sampler(model, SHAPE)
    return sampler, copied(sampler), model


WAYS: dict[str, Callable[[Sampler], Sampler]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda sampler: pickle.loads(pickle.dumps(sampler)),
    "pickled twice": lambda sampler: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(sampler)))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_draws_the_same_and_stands_alone(way: str) -> None:
    sampler, other, model = through(WAYS[way])
    labels, images = torch.tensor([0, 2, 1]), torch.zeros(3, *SHAPE, dtype=torch.uint8)
    expected = sampler.sample(3, labels, noise=noise())
    scored = sampler.log_prob(images, labels).detach()
    take(model, trained_on(model))
    for runtime in ("cpu", "eager", "reference"):
        with silence():
            assert torch.equal(other.sample(3, labels, noise=noise(), runtime=runtime), expected)
    assert torch.equal(other.log_prob(images, labels), scored)
    assert not other.log_prob(images, labels).requires_grad
    with pytest.raises(ValueError, match=r"copy, or comes out of a pickle: pass refresh\(model\)"):
        other.refresh()
    if way == "copy":  # it has what evaluates weights again
        with silence():
            other.refresh(model)
    else:
        with pytest.warns(UserWarning, match="built anew.*pickle"):
            other.refresh(model)
    new = Sampler(model, SHAPE).sample(3, labels, noise=noise())
    assert torch.equal(other.sample(3, labels, noise=noise()), new) and not torch.equal(new, expected)
    with silence():
        other.refresh()


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_reads_the_same_part_of_the_output(way: str) -> None:
    sampler = Sampler(Pair(1, 8, 0).eval(), SHAPE, output=1)
    other, images = WAYS[way](sampler), torch.zeros(3, *SHAPE, dtype=torch.uint8)
    assert torch.equal(other.log_prob(images), sampler.log_prob(images))
    assert torch.equal(*(each.sample(3, noise=noise(), runtime="reference") for each in (sampler, other)))


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_refreshed_sampler_runs_the_refreshed_module(way: str) -> None:
    sampler, _, model = through(WAYS[way])
    take(model, trained_on(model))
    other, labels = WAYS[way](sampler.refresh()), torch.tensor([0, 2, 1])
    expected = Sampler(model, SHAPE).sample(3, labels, noise=noise(), runtime="reference")
    assert torch.equal(other.sample(3, labels, noise=noise(), runtime="reference"), expected)


def test_a_pickle_of_a_refreshed_sampler_is_no_larger() -> None:
    """Though its weights were computed together, and lie in the same memory."""
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    size = len(pickle.dumps(sampler))
    take(model, trained_on(model))
    assert len(pickle.dumps(sampler.refresh())) < 1.1 * size


def test_a_pickle_holds_each_half_of_a_layer_s_weights_once() -> None:
    model = models.GatedPixelCNN(1, 16, (1, 2)).eval()
    single, double = (
        len(pickle.dumps(Sampler(each, SHAPE))) for each in (model, copy.deepcopy(model).double())
    )
    assert double < 2 * single


def test_a_module_that_can_t_be_pickled_is_left_behind() -> None:
    sampler, labels = Sampler(Hooked().eval(), SHAPE), torch.tensor([0, 2, 1])
    with pytest.warns(UserWarning, match="travels without its module, which can't be pickled"):
        data = pickle.dumps(sampler)
    other = pickle.loads(data)
    assert torch.equal(*(each.sample(3, labels, noise=noise()) for each in (sampler, other)))
    for act in (
        lambda: other.sample(3, labels, runtime="reference"),
        lambda: other.log_prob(torch.zeros(3, *SHAPE, dtype=torch.uint8), labels),
    ):
        with pytest.raises(RuntimeError, match="out of a pickle without its module"):
            act()
    with pytest.raises(ValueError, match="labels span"):
        other.sample(3, torch.tensor([0, 3, 1]))
    assert "was not pickled" in repr(other)
    with silence():
        pickle.dumps(other)
        assert copy.deepcopy(other).sample(3, labels, noise=noise()).shape == (3, *SHAPE)
    with silence():  # a copy needs no pickle
        assert copy.deepcopy(sampler).sample(3, labels, noise=noise(), runtime="reference").shape == (
            3,
            *SHAPE,
        )


class Drawn(torch.utils.data.Dataset):
    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return self.sampler.sample(1, torch.tensor([index]), noise=noise(1))


@thorough
def test_the_workers_of_a_data_loader_draw() -> None:
    sampler = Sampler(models.PixelCNN(1, 8, 0, n_classes=3).eval(), SHAPE)
    data = Drawn(sampler)
    loader = torch.utils.data.DataLoader(
        data, num_workers=1, multiprocessing_context=multiprocessing.get_context("spawn")
    )
    for index, image in enumerate(loader):
        assert torch.equal(image[0], data[index])


def test_what_is_printed() -> None:
    sampler = Sampler(models.PixelCNN(1, 8, 0, n_classes=3).eval(), SHAPE, precision="bf16")
    assert repr(sampler).startswith("<Sampler of PixelCNN: images 1x3x4, Categorical(levels=256, layout=")
    assert "labels 0...2, runtime 'cpu', precision 'bf16'" in repr(sampler) and "MB of weights>" in repr(
        sampler
    )
    assert "runtime 'reference'>" in repr(Sampler(pixelcnn(), SHAPE, runtime="reference"))
    conditioned = Sampler(models.GatedPixelCNN(1, 4, [1], condition_channels=2, levels=4).eval(), SHAPE)
    assert ", condition [2, 3, 4], runtime" in repr(conditioned)

    class AnyLabel(MaskedConv2d):
        levels = 4

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]  # another kind of model
            return super().forward(x.float()) + labels.view(-1, 1, 1, 1)

    assert ", labels, runtime" in repr(Sampler(AnyLabel(1, 4, 3, "A"), SHAPE))

"""Receptive fields read off the weights, against the ones that autograd sees: nothing leaks, nothing is starved."""

import re

import pytest
import torch

from pixelcnn_fast.capture.capture import capture
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.passes.pipeline import simplified
from pixelcnn_fast.program.causality import leak_of
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.program.instructions import Convolution, FromLevels
from pixelcnn_fast.program.operands import Tap
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.receptive_field.fields import receptive_fields
from tests.system.networks import pixelcnn, positive, two_stacks


def why_not_causal(program: Program) -> str | None:
    leak = leak_of(program)
    return None if leak is None else leak.why


def seen_by_autograd(model, shape, y: int, x: int) -> torch.Tensor:
    """[H, W]: the pixels that logits at (y, x) depend on. Positive weights and inputs, so that nothing cancels."""
    images = torch.rand(2, *shape, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(2, dtype=torch.long) if model.n_classes else None
    logits = model(images) if labels is None else model(images, labels)
    (gradient,) = torch.autograd.grad(logits[:, :, y, x].sum(), images)
    return gradient.abs().sum((0, 1)) > 0


def examples(images: torch.Tensor) -> list[tuple[torch.Tensor, Conditioning]]:
    return [(images, Conditioning()), (images[[0, 1, 1]], Conditioning())]


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        (pixelcnn(channels=3, blocks=1, kernel=5), 3),
        (pixelcnn(channels=1, blocks=2, kernel=3), 1),
        (two_stacks(n_classes=None), 2),
    ],
    ids=["PixelCNN 5x5", "PixelCNN 3x3", "TwoStacks"],
)
def test_fields_are_exact(model, channels):
    model, (height, width) = positive(model.double()), (7, 9)
    images = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)
    program, *_ = capture(model, examples(images), Categorical())
    for form in (program, simplified(program)):
        field = receptive_fields(form)[form.outputs[0]][0, 0].seen.any(0).any(0)
        for y, x in [(0, 0), (3, 4), (6, 8), (5, 0)]:
            window = field[height - 1 - y : 2 * height - 1 - y, width - 1 - x : 2 * width - 1 - x]
            assert torch.equal(window, seen_by_autograd(model, (channels, height, width), y, x)), (y, x)


def test_the_whole_context_is_used():
    """A pixel sees its left neighbour, and all three neighbours above."""
    images = torch.zeros(2, 1, 5, 5, dtype=torch.uint8)
    program, *_ = capture(pixelcnn(kernel=3), examples(images), Categorical())
    field = receptive_fields(program)[program.outputs[0]][0, 0].seen.any(0).any(0)
    assert field[4, 3] and field[3, 3] and field[3, 4] and field[3, 5]
    assert not field[4, 4:].any() and not field[5:].any()


@pytest.mark.parametrize(
    ("red_sees", "green_sees", "why"),
    [
        ([0, 0], [1, 0], None),
        ([0, 0], [1, 1], "green: .*image channel 1 sees its own channel of its own pixel"),
        (
            [0, 1],
            [1, 0],
            "red: .*image channel 0 sees channel 1, which is drawn later, of its own pixel, through red;",
        ),
    ],
)
def test_a_leak_between_outputs_is_named(red_sees: list[int], green_sees: list[int], why: str | None) -> None:
    """Each colour's logits are a value of their own; green may see red of its own pixel, and not itself."""
    before = torch.ones(2, 3, dtype=torch.float64)
    red, green = (
        Convolution(out, 3, name, (Tap(0, 0, -1, before), Tap(0, 0, 0, before * torch.tensor(sees)[:, None])))
        for out, name, sees in ((1, "red", red_sees), (2, "green", green_sees))
    )
    levels = FromLevels(0, 2, "levels")
    found = why_not_causal(Program((2, 4, 5), 3, (levels, red, green), (1, 2), torch.float64))
    assert found is None if why is None else re.match(why, found or ""), found


def test_a_leak_in_a_later_channel_of_an_output_is_named() -> None:
    """Of three colours' logits, those of the last two are one value, and blue sees itself."""
    weight = torch.zeros(3, 6, dtype=torch.float64)
    weight[2, 3:] = 1
    red = Convolution(1, 3, "red", (Tap(0, 0, -1, torch.ones(3, 3, dtype=torch.float64)),))
    others = Convolution(2, 6, "others", (Tap(0, 0, 0, weight),))
    layers = (FromLevels(0, 3, "levels"), red, others)
    found = why_not_causal(Program((3, 4, 5), 3, layers, (1, 2), torch.float64))
    assert re.match("others: .*image channel 2 sees its own channel of its own pixel", found or ""), found


def test_two_walks_of_one_kind_see_what_each_of_them_starts_from() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    walks = [Convolution(out, 1, "walk", (Tap(0, -out, 0, one), Tap(out, 0, -1, one))) for out in (1, 2)]
    last = Convolution(3, 1, "last", (Tap(1, 0, 0, one), Tap(2, 0, 0, one)))
    layers = (FromLevels(0, 1, "levels"), *walks, last)
    fields = receptive_fields(Program((1, 4, 5), 1, layers, (3,), torch.float64))
    for out in (1, 2):
        assert fields[out][0, 0].seen.any(0).any(0).nonzero().tolist() == [[3 - out, x] for x in range(5)]


def test_a_walk_that_reads_two_values_at_one_place_sees_through_both() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    both = Convolution(1, 1, "both", (Tap(0, -1, 0, one), Tap(1, 0, -1, one), Tap(2, 0, -1, one)))
    above = Convolution(2, 1, "above", (Tap(0, -2, 0, one), Tap(1, -1, 0, one)))
    layers = (FromLevels(0, 1, "levels"), both, above, sums(3, "last", [(0, 0)]))
    seen = receptive_fields(Program((1, 4, 5), 1, layers, (3,), torch.float64))[1][0, 0].seen.any(0).any(0)
    assert seen[2].tolist() == 5 * [True] + 4 * [False] and seen[1, :4].all() and not seen[1, 4:].any()


def test_an_output_that_is_the_image_is_told() -> None:
    levels = FromLevels(0, 1, "levels")
    assert "its own input" in (why_not_causal(Program((1, 4, 5), 1, (levels,), (0,), torch.float64)) or "")


At = tuple[int, int]


@pytest.mark.parametrize(
    ("first", "last", "named"),
    [
        ([(0, 1)], [(1, 0)], r"last: kernel tap \(\+1, \+0\) has weight 1, .* sees a later pixel"),
        ([(0, 4)], [(0, 0)], r"first: kernel tap \(\+0, \+4\) .* sees a later pixel"),
        ([(1, 0)], [(0, 1)], r"first: kernel tap \(\+1, \+0\) .* sees a later pixel"),
        ([(0, 0)], [(0, 3), (0, 1)], r"last: kernel tap \(\+0, \+1\) .* sees a later pixel"),
        ([(0, 0)], [(-1, 0), (0, 0)], r"last: kernel tap \(\+0, \+0\) .* sees its own pixel; .* mask A\?"),
        ([(0, -1)], [(0, 1)], r"last: kernel tap \(\+0, \+1\) .* sees its own pixel; is the mask applied\?"),
    ],
)
def test_the_layer_at_fault_is_named(first: list[At], last: list[At], named: str) -> None:
    """The one that looks furthest ahead for the first pixel that is seen; else the one that should have a mask."""
    layers = (FromLevels(0, 1, "levels"), sums(1, "first", first), sums(2, "last", last))
    found = why_not_causal(Program((1, 4, 5), 1, layers, (2,), torch.float64))
    assert re.match(named, found or ""), found


def test_a_walk_from_the_right_is_named() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    walk = Convolution(1, 1, "walk", (Tap(0, 0, -1, one), Tap(1, 0, 1, one)))
    layers = (FromLevels(0, 1, "levels"), walk, sums(2, "last", [(0, 0)]))
    found = why_not_causal(Program((1, 4, 5), 1, layers, (2,), torch.float64))
    assert re.match(
        "walk: .*; it walks rows from the right: shift what it gives down by a row", found or ""
    ), found


def sums(out: int, name: str, places: list[At]) -> Convolution:
    minus_one = -torch.ones(1, 1, dtype=torch.float64)
    return Convolution(out, 1, name, tuple(Tap(out - 1, *at, minus_one) for at in places))

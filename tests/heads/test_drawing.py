"""Temperature, top-k and top-p: against a draw written out level by level, and the same in every runtime."""

import argparse
import math
from dataclasses import MISSING, asdict, fields
from functools import cache
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler
from pixelcnn_fast.call import fields_among
from pixelcnn_fast.cli import sample as command
from pixelcnn_fast.heads.drawing import draw
from pixelcnn_fast.heads.options import OptionArguments, SamplingOptions
from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.runtimes.native_program import sampling_options
from tests.needs import RUNTIMES, needs_native
from tests.system.networks import pixelcnn

OPTIONS: list[dict[str, Any]] = [
    dict(top_k=1),
    dict(top_k=3),
    dict(top_k=999),
    dict(top_p=1e-9),
    dict(top_p=0.6, temperature=1.7),
    dict(top_p=1.0),
    dict(top_k=5, top_p=0.8, temperature=0.5),
    dict(top_k=2, temperature=0),
]


def drawn_slowly(logits: list[float], u: float, temperature=1.0, top_k=None, top_p=None) -> int:
    levels = sorted(range(len(logits)), key=lambda k: (-logits[k], k))
    if temperature == 0:
        return levels[0]
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    levels = levels[:top_k]
    if top_p is not None:
        total, before = sum(weights[k] for k in levels), 0.0
        kept: list[int] = []
        for k in levels:
            if before < top_p * total or not kept:
                kept.append(k)
            before += weights[k]
        levels = kept
    levels.sort()
    target, cumulative = u * sum(weights[k] for k in levels), 0.0
    for k in levels:
        cumulative += weights[k]
        if target < cumulative:
            return k
    return levels[-1]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_draw_level_by_level(options):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 9, dtype=torch.float64, generator=generator)
    logits[50:100] = logits[50:100].round()  # ties
    logits[100:120] = 0
    u = torch.rand(200, dtype=torch.float64, generator=generator)
    u[:5], u[5:10] = 0, math.nextafter(1, 0)
    expected = [drawn_slowly(row.tolist(), float(x), **options) for row, x in zip(logits, u, strict=True)]
    assert draw(logits, u, SamplingOptions(**options)).tolist() == expected


def test_rounding_never_draws_a_level_that_is_excluded():
    logits, u = torch.tensor([[0.0, 0.0, -50.0, 0.0]]).double(), torch.tensor([math.nextafter(1, 0)]).double()
    assert draw(logits, u, SamplingOptions(top_k=2)).item() == 1
    assert draw(logits, u, SamplingOptions(top_p=0.5)).item() == 1


class OfLabel(nn.Module):
    """Its first and its last levels have no probability."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Embedding(200, 256).double()
        with torch.no_grad():
            self.logits.weight.mul_(3)[:, 200:] = -1e4
            self.logits.weight[:, :20] = -1e4

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.logits(label)[..., None, None] + nn.functional.pad(x, (1, -1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rounding_never_draws_a_level_without_probability(runtime):
    sampler = Sampler(OfLabel(), (1, 1, 2), conditional=True, image_form="levels")
    for noise, level in ((math.nextafter(1, 0), 199), (0, 20)):
        u = torch.full((200, 1, 1, 2), noise, dtype=torch.float64)
        drawn = sampler.sample(200, torch.arange(200), noise=u, runtime=runtime)
        assert (drawn == level).any() and (drawn >= 20).all() and (drawn < 200).all()


@cache
def of_two_channels() -> Sampler:
    return Sampler(pixelcnn(channels=2, kernel=3).double(), (2, 3, 4))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_runtimes_draw_what_the_reference_draws(runtime, options):
    sampler = of_two_channels()
    u = torch.rand(3, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    known = torch.zeros(3, 4, dtype=torch.bool)
    known[0, :2] = True
    naive = sampler.sample(3, noise=u, runtime="reference", **options)
    assert torch.equal(sampler.sample(3, noise=u, runtime=runtime, **options), naive)
    completed = sampler.complete(255 - naive, known, noise=u, runtime="reference", **options)
    assert torch.equal(sampler.complete(255 - naive, known, noise=u, runtime=runtime, **options), completed)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_lowest_temperature_takes_the_most_likely_level(runtime):
    sampler = Sampler(pixelcnn(kernel=3), (1, 4, 4))
    u = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    lowest = sampler.sample(3, noise=u, temperature=2**-126, runtime=runtime)
    assert torch.equal(lowest, sampler.sample(3, noise=u, temperature=0, runtime=runtime))


@needs_native
@pytest.mark.parametrize("steps", [4, 0.25], ids=["some levels", "all levels"])
def test_ties_are_broken_as_in_the_reference(steps):
    """Where all levels are equally likely, half of them reach half of the probability to the bit."""
    model = pixelcnn(kernel=3).double()
    with torch.no_grad():
        model.get_parameter("conv_out.weight").zero_()
        model.get_parameter("conv_out.bias").mul_(steps).round_().div_(steps)
    sampler, u = Sampler(model, (1, 8, 8)), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    for options in (dict(top_k=40), dict(top_p=0.5), dict(temperature=0)):
        images = sampler.sample(4, noise=u, runtime="cpu", **options)
        assert torch.equal(images, sampler.sample(4, noise=u, runtime="reference", **options))


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_log_probabilities_are_the_teacher_forced_likelihood(runtime):
    model = pixelcnn(channels=2, classes=3).double()
    sampler, labels = Sampler(model, (2, 3, 4)), torch.tensor([0, 2, 1])
    u = torch.rand(3, 2, 3, 4, dtype=torch.float64)
    for options in (dict(), dict(temperature=0.7, top_k=9), dict(temperature=0)):
        arguments = dict(noise=u, runtime=runtime, log_probability=True, **options)
        images, found = sampler.sample(3, labels, batch_size=2, **arguments)
        assert torch.allclose(found, -nll(model, images, labels).detach(), rtol=1e-12, atol=0)
    known = torch.ones(3, 4, dtype=torch.bool)
    known[2, 3] = False
    completed, found = sampler.complete(images, known, labels, **arguments)
    logits = model(completed, labels).detach()[:, :, 2, 3].log_softmax(-1)
    expected = logits.gather(-1, completed[:, :, 2, 3].long()[..., None]).sum((1, 2))
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(top_k=0), "top_k"),
        (dict(top_k=1.5), "top_k"),
        (dict(top_p=0), "top_p"),
        (dict(top_p=1.1), "top_p"),
        (dict(top_p=math.nan), "top_p"),
        (dict(temperature=-1), "temperature"),
        (
            dict(temperature=1e-300),
            "temperature is 1e-300: expected at least 1.18e-38, .*0 takes the most likely",
        ),
        (dict(temperature=math.nextafter(2**-126, 0)), "expected at least"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**arguments)


# -- an option is declared once


def test_every_option_is_drawn_with():
    known = {option.name for option in fields(SamplingOptions)}
    assert {name for options in OPTIONS for name in options} == known


@pytest.mark.parametrize("option", fields(SamplingOptions), ids=lambda option: option.name)
def test_every_option_is_an_argument_of_the_command_line(option):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    command.add_parser(commands)
    flag = f"--{option.name.replace('_', '-')}"
    given, left_out = parser.parse_args(["sample", flag, "1"]), parser.parse_args(["sample"])
    assert option.default is not MISSING and getattr(left_out, option.name) == option.default
    assert getattr(given, option.name) == 1 and type(getattr(given, option.name)) is option.metadata["parse"]
    assert asdict(fields_among(SamplingOptions, vars(given))) == {**asdict(SamplingOptions()), option.name: 1}
    help = " ".join(commands.choices["sample"].format_help().split())
    assert flag in help and option.metadata["help"] in help


def test_type_checkers_know_every_option():
    """Temperature is the only option among the positional arguments of ``Sampler.sample``."""
    expected = get_type_hints(SamplingOptions)
    assert {**get_type_hints(OptionArguments), "temperature": float} == expected


def test_no_option_is_larger_than_the_compiled_runtimes_can_hold():
    assert sampling_options(SamplingOptions(top_k=10**12)) == SamplingOptions(top_k=2**31 - 1)
    assert sampling_options(SamplingOptions(top_k=3, top_p=0.5)) == SamplingOptions(top_k=3, top_p=0.5)

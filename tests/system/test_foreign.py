"""Networks that other people could have written: all runtimes draw the same images, and every mutant is found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import receptive_field
from pixelcnn_fast.compiler import capture_model
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN
from pixelcnn_fast.native import native
from pixelcnn_fast.passes.split_channels import without_unread_channels
from pixelcnn_fast.program.causality import leak_of
from pixelcnn_fast.program.conditions import EXAMPLE_BATCH
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution
from pixelcnn_fast.program.operands import ConditionOperand, Tap
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.steps import KINDS
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.system.foreign import LEVELS, NETWORKS, Network
from tests.tiers import thorough, tiered
from tests.tolerances import assert_identical_up_to_rounding

RUNTIMES: list[RuntimeName] = ["eager", "cpu"] if native() else ["eager"]


def gated(**kwargs) -> GatedPixelCNN:
    return GatedPixelCNN(**{"hidden_channels": 6, "dilations": [1, 2], "levels": LEVELS, **kwargs})


OWN = {
    "gated": Network(lambda: gated(input_channels=1), (1, 5, 6), {"head": Categorical(LEVELS)}),
    "gated thirds": Network(
        lambda: gated(hidden_channels=14, channel_order="thirds", n_classes=3),
        (3, 4, 5),
        {"head": Categorical(LEVELS)},
        classes=3,
    ),
    "gated interleaved": Network(
        lambda: gated(hidden_channels=13, channel_order="interleaved"),
        (3, 4, 5),
        {"head": Categorical(LEVELS)},
    ),
    "thirds": Network(
        lambda: PixelCNN(3, 14, 1, kernel_size=3, channel_order="thirds"),
        (3, 4, 4),
        {"head": Categorical(256)},
    ),
}
MUTATED = {**NETWORKS, **{f"own {name}": network for name, network in OWN.items()}}


@thorough
def test_every_kind_of_instruction_and_of_step_is_in_some_network():
    found: set[object] = set()
    for network in MUTATED.values():
        wrapped = network.sampler(network.model())._engine.model
        program = capture_model(wrapped).program
        for i in program.instructions:
            found |= {type(i), *(step.kind for step in i.steps)}
    assert {
        kind for kind in Instruction.__subclasses__() if kind.__module__.startswith("pixelcnn_fast.")
    } <= found
    assert set(KINDS) <= found


@pytest.mark.parametrize("name", NETWORKS)
def test_all_runtimes_give_the_naive_images(name):
    network = NETWORKS[name]
    model = network.model()
    sampler, given = network.sampler(model), network.given(5)
    u = torch.rand(5, *network.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    naive = sampler.sample(5, **given, noise=u, runtime="reference")
    assert sampler.head.levels is not None
    assert naive.unique().numel() >= min(4, sampler.head.levels)  # lively
    options: dict[str, Any] = dict(top_k=6, top_p=0.9, temperature=1.2, log_probability=True)
    known = torch.rand(network.shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5

    def found(runtime: RuntimeName) -> tuple[Tensor, Tensor]:
        """The log-probabilities of what is drawn with options, and other images' pixels completed."""
        _, scores = sampler.sample(5, **given, noise=u, runtime=runtime, **options)
        return scores, sampler.complete(naive.flip(0), known, **given, noise=u, runtime=runtime)

    expected, completed = found("reference")
    for runtime in RUNTIMES:
        assert torch.equal(sampler.sample(5, **given, noise=u, runtime=runtime), naive)
        scores, images = found(runtime)
        assert_identical_up_to_rounding(scores, expected)
        assert torch.equal(images, completed)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_are_causal_and_see_their_neighbours(name):
    network = NETWORKS[name]
    field = receptive_field(network.model(), network.shape, **network.settings())
    assert field.causal
    _, height, width = network.shape
    left, above, right = (height - 1, width - 2), (height - 2, width - 1), (height - 2, width)
    for y, x in (left, above, right):
        assert field.seen[:, :, y, x].all()


# -- mutants: one tap more or fewer, in every layer


Condition = Callable[[ConditionOperand], Tensor]


def captured(network: Network) -> tuple[Program, Tensor, Tensor, Condition]:
    """(program, levels, the model's own logits, what evaluates its conditions)."""
    wrapped = WrappedModel(network.model(), network.shape, **network.settings())
    levels, given = wrapped.example()
    whole, conditions, *_ = capture_model(wrapped)
    logits = wrapped.distribution_parameters(levels, given)
    program = without_unread_channels(whole)  # no mutant of what nobody reads can be found
    operands = [
        step.condition for i in program.instructions for step in i.steps if step.condition is not None
    ]
    return program, levels, logits, conditions(operands, given, EXAMPLE_BATCH).__getitem__


def with_taps(program: Program, index: int, taps: tuple[Tap, ...]) -> Program:
    changed = list(program.instructions)
    convolution = changed[index]
    assert isinstance(convolution, Convolution)
    changed[index] = replace(convolution, taps=taps)
    return replace(program, instructions=tuple(changed))


def convolutions(program: Program) -> list[tuple[int, Convolution]]:
    return [
        (index, i) for index, i in enumerate(program.instructions) if isinstance(i, Convolution) and i.taps
    ]


@pytest.mark.parametrize("name", MUTATED)
def test_a_lost_tap_is_a_mismatch(name):
    """What the sampler's own check would compare differs visibly for each tap of each layer."""
    program, levels, logits, condition = captured(MUTATED[name])
    assert_identical_up_to_rounding(evaluate(program, levels, condition), logits)
    for index, i in convolutions(program):
        for lost in range(len(i.taps)):
            mutant = with_taps(program, index, i.taps[:lost] + i.taps[lost + 1 :])
            error = (evaluate(mutant, levels, condition) - logits).abs().max()
            assert error > 1e-6, (i.name, i.taps[lost].dy, i.taps[lost].dx)


SLOW = {"cropped shifts", "two scales", "tokens", "start token", "axial", "weights by hand"}


@pytest.mark.parametrize("name", tiered(MUTATED, lambda name: name not in SLOW))
def test_a_leaking_tap_is_not_causal(name):
    """A tap one pixel ahead, or on the present pixel, in each layer: refused exactly where the logits then change
    with a sub-pixel that they must not see."""
    program, levels, _, condition = captured(MUTATED[name])
    _, height, width = program.shape
    generator = torch.Generator().manual_seed(0)
    leaks = 0
    for index, i in convolutions(program):
        like = i.taps[0]
        for dy, dx in ((0, 0), (0, 1), (1, -1)):
            weight = torch.rand(like.weight.shape, dtype=torch.float64, generator=generator)
            mutant = with_taps(program, index, (*i.taps, Tap(like.source, dy, dx, weight)))
            leak = leak_of(mutant)
            assert (leak is not None) == sees_too_much(mutant, levels, condition), (i.name, dy, dx, leak)
            if leak is not None and (dy, dx) != (0, 0) and name != "cropped shifts":  # which may read ahead
                assert leak.why.startswith(f"{i.name}: kernel tap ({dy:+d}, {dx:+d})"), leak
            leaks += leak is not None
    assert leaks > 2


def sees_too_much(program: Program, levels: Tensor, condition: Condition) -> bool:
    """Whether some logits change with their own sub-pixel or a later one: tried at three places, then at all."""
    c, height, width = program.shape
    before = evaluate(program, levels, condition)
    order = torch.arange(c * height * width).view(height, width, c).permute(2, 0, 1)  # raster, then channels
    places = [(0, 0), (height // 2, width // 2), (height - 1, width - 1)]
    for y, x in [*places, *((y, x) for y in range(height) for x in range(width))]:
        for channel in range(c):
            changed = levels.clone()
            changed[:, channel, y, x] = program.parameters - 1 - changed[:, channel, y, x]
            moved = ((evaluate(program, changed, condition) - before).abs() > 1e-9).any(-1).any(0)
            if bool(moved[order <= order[channel, y, x]].any()):
                return True
    return False

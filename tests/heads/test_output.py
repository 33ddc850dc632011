"""Models that return more than their logits: which part is read, and what is said where that is not clear."""

from collections import UserDict, namedtuple
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, check_causal, likelihood, receptive_field
from pixelcnn_fast.errors import UnknownLayout
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.heads.output import picked
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.user_model.model_arguments import ModelArguments
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

SHAPE, LEVELS = (1, 4, 5), 7


@dataclass
class Record:
    logits: Tensor
    loss: float = 0.0


Named = namedtuple("Named", ["hidden", "logits"])


class Output(UserDict):
    """A mapping that is no dict."""


class Net(nn.Module):
    levels = LEVELS

    def __init__(self, how=lambda hidden, logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out, self.how = MaskedConv2d(1, 6, 3, "A"), nn.Conv2d(6, LEVELS, 1), how
        self.double()

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.conv(x.to(self.out.weight.dtype) / 255))
        return self.how(hidden, 9 * self.out(hidden))


OUTPUTS: dict[str, tuple[Any, Any]] = {
    "a tuple": (lambda hidden, logits: (hidden, logits), 1),
    "a tuple, from its end": (lambda hidden, logits: (hidden, logits), -1),
    "a list": (lambda hidden, logits: [logits, hidden], 0),
    "a dict": (lambda hidden, logits: {"hidden": hidden, "logits": logits}, "logits"),
    "a dict of numbers": (lambda hidden, logits: {8: logits}, 8),
    "a mapping": (lambda hidden, logits: Output(logits=logits), "logits"),
    "a named tuple": (Named, "logits"),
    "a record": (lambda hidden, logits: Record(logits), "logits"),
    "nested": (lambda hidden, logits: {"all": (logits, {})}, lambda returned: returned["all"][0]),
    "a text among others": (lambda hidden, logits: {"text": "a note", "logits": logits}, "logits"),
    "one tensor, changed": (lambda hidden, logits: logits / 9, lambda logits: 9 * logits),
}


@cache
def plain() -> tuple[Net, Tensor, Tensor, Tensor]:
    """The model that returns its logits: with noise, what is drawn from it, and what it sees."""
    u = torch.rand(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Net(), u, Sampler(Net(), SHAPE).sample(3, noise=u), receptive_field(Net(), SHAPE).seen


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_part_that_is_named_is_read(name):
    how, output = OUTPUTS[name]
    model, (whole, u, expected, seen) = Net(how), plain()
    sampler = Sampler(model, SHAPE, output=output)
    for runtime in ("reference", "eager", "auto"):
        assert torch.equal(sampler.sample(3, noise=u, runtime=runtime), expected)
    assert " conv " in str(sampler.program)  # the names of layers are the model's own
    assert not model._forward_hooks
    assert torch.equal(receptive_field(model, SHAPE, output=output).seen, seen)
    assert torch.equal(likelihood.nll(model, expected, output=output), likelihood.nll(whole, expected))
    bits = likelihood.bits_per_dim(model, [expected], output=output)
    assert bits == likelihood.bits_per_dim(whole, [expected])


@pytest.mark.parametrize(
    ("returned", "output", "message"),
    [
        (
            "a tuple",
            None,
            r"a tuple of 0: a tensor \[2, 6, 4, 5\], 1: a tensor \[2, 7, 4, 5\]; say with output=",
        ),
        (
            "a dict",
            None,
            r"a dict of 'hidden': a tensor \[2, 6, 4, 5\], 'logits': a tensor \[2, 7, 4, 5\]; say",
        ),
        (
            "a text among others",
            None,
            r"a dict of 'text': a str, 'logits': a tensor \[2, 7, 4, 5\]; say with",
        ),
        ("a mapping", None, r"an Output of 'logits': a tensor \[2, 7, 4, 5\]; say"),
        ("a record", None, r"a Record of 'logits': a tensor \[2, 7, 4, 5\]; say"),
        ("nested", None, r"a dict of 'all': a tuple of 0: a tensor \[2, 7, 4, 5\], 1: a dict of nothing"),
        ("a tuple", 2, r"^output=2, but the model returned a tuple of 0: a tensor"),
        ("a tuple", "logits", r"^output='logits', but the model returned a tuple of"),
        ("a dict", 0, r"^output=0, but the model returned a dict of 'hidden'"),
        ("nested", "all", r"^output='all' is a tuple of .*, not a tensor; the model returned a dict"),
        (
            "a dict",
            lambda found: found["logit"],
            r"^output= raised KeyError: 'logit'; the model returned a dict",
        ),
        ("a record", "loss", r"^output='loss' is a float, not a tensor; the model returned a Record"),
    ],
)
def test_what_there_is_is_listed(returned, output, message):
    how, _ = OUTPUTS[returned]
    for function in (Sampler, check_causal):
        with pytest.raises(UnknownLayout, match=message):
            function(Net(how), SHAPE, output=output)


def test_a_model_that_returns_nothing():
    with pytest.raises(UnknownLayout, match="returned a NoneType; say"):
        picked(None, None)
    with pytest.raises(UnknownLayout, match="returned an int"):
        picked(3, 0)


@pytest.mark.parametrize("runtime", ["reference", "eager"])
def test_the_part_is_read_in_half_precision_too(runtime):
    how, output = OUTPUTS["nested"]
    sampler = Sampler(Net(how).bfloat16(), SHAPE, output=output)
    assert sampler.sample(2, runtime=runtime).shape == (2, *SHAPE)


def test_another_module_can_be_wrapped_in_the_same_way() -> None:
    head = Categorical(LEVELS, "N,C,H,W,L")
    shown: Any = dict(head=head, conditional=True, image_form="unit", output=1)
    given = ModelArguments(condition_shape=(3,), condition_dtype=torch.long, **shown)
    assert {*given, "levels"} == {*ModelArguments.__annotations__}  # levels are the head's
    wrapped = WrappedModel(Net(), SHAPE, **given)
    assert wrapped.arguments() == given == WrappedModel(Net(), SHAPE, **wrapped.arguments()).arguments()

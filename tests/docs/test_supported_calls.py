"""docs/supported_calls.md agrees with capture: it lists every call once, and its limits are real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import supported_calls as calls
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, Unsupported, heads
from pixelcnn_fast.nn import MaskedConv2d

ROWS = [row for rows in calls.GROUPS.values() for row in rows]


def test_every_call_in_the_code_is_in_one_group() -> None:
    listed = Counter(name for row in ROWS for name in row.names)
    assert calls.names_in_the_code() - set(listed) == set(), "put these into a group in docs/supported_calls.py"
    assert set(listed) - calls.names_in_the_code() == set(), "no table in the code has these any more"
    assert [name for name, count in listed.items() if count > 1] == []


def test_a_new_call_in_the_code_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(calls.lowering.LOWERINGS, "erfinv", lambda *_: None)
    with pytest.raises(AssertionError, match="erfinv"):
        test_every_call_in_the_code_is_in_one_group()


REFUSED_CALLS = [name for refused in calls.REFUSED for name in refused.names]


@pytest.mark.parametrize("name", REFUSED_CALLS)
def test_a_call_listed_as_refused_exists_and_is_not_supported(name: str) -> None:
    assert name not in calls.names_in_the_code()
    assert any(hasattr(module, name) for module in (torch, F, Tensor))
    assert REFUSED_CALLS.count(name) == 1


Call = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


class Around(nn.Module):
    """A causal model of one channel and three levels, with a call in the middle, on [N, 4, 5, 5], or at its end."""

    def __init__(self, middle: Call = same, end: Call = same) -> None:
        super().__init__()
        self.first = MaskedConv2d(1, 4, 3, mask_type="A")
        self.last = nn.Conv2d(4, 3, 1)
        self.middle, self.end = middle, end

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.last(self.middle(self.first(images.float()))))


ROWS_ABOVE = torch.tensor([1.0, 0.0, 0.0]).view(3, 1).expand(4, 4, 3, 3)
MATRIX = torch.arange(16.0).view(4, 4) / 16
TRIANGLE = torch.ones(5, 5, dtype=torch.bool).triu()


def channels_last(call: Call) -> Call:
    return lambda x: call(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def on_a_coarser_grid(x: Tensor) -> Tensor:
    x = F.pixel_unshuffle(F.pad(x, (0, 1, 0, 1)), 2)
    return F.pixel_shuffle(F.conv2d(x, torch.ones(16, 16, 1, 1)), 2)[:, :, :5, :5]


# For a call whose limits the page states, a use beyond them, with a word of the refusal's reason.
BEYOND_LIMITS: dict[str, tuple[Call, str]] = {
    "conv2d": (
        lambda x: F.conv2d(x, ROWS_ABOVE, stride=2, padding=1).repeat(1, 1, 2, 2)[:, :, :5, :5],
        "stride",
    ),
    "linear": (lambda x: F.linear(x, torch.ones(5, 5)), "last axis"),
    "matmul": (lambda x: x @ x, "matrix"),
    "layer_norm": (lambda x: F.layer_norm(x, (4, 5, 5)), "mixes rows"),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), "eval"),
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), "eval"),
    "softplus": (lambda x: F.softplus(x, threshold=10), "threshold"),
    "div": (lambda x: x.div(2, rounding_mode="floor"), "rounding_mode"),
    "pow": (lambda x: x**x, "exponent"),
    "mean": (lambda x: x - x.mean(), "axis"),
    "sum": (lambda x: x + x.sum(2, keepdim=True), "last axis"),
    "pad": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1], "zeros"),
    "roll": (lambda x: x.roll(1, 2), "rearrangement"),
    "flip": (lambda x: x.flip(3), "rearrangement"),
    "where": (lambda x: torch.where(TRIANGLE, x, 0.0), "rearrangement"),
    "pixel_unshuffle": (on_a_coarser_grid, "rearrangement"),
    "float": (lambda x: x.bfloat16().float(), "rounds"),
    "rand_like": (lambda x: x + torch.rand_like(x), "image to image"),
    "softmax": (lambda x: x.softmax(1), "last call"),
    "logit": (lambda x: (x * 0.1 + 0.5).logit(), "sigmoid"),
}
# And a use within them.
WITHIN_LIMITS = {
    "conv2d": lambda x: F.conv2d(x, ROWS_ABOVE[:, :2], padding=2, groups=2)[:, :, 1:-1, 1:-1],
    "linear": channels_last(lambda x: F.linear(x, MATRIX)),
    "matmul": channels_last(lambda x: x @ MATRIX),
    "layer_norm": channels_last(lambda x: F.layer_norm(x, (4,))),
    "batch_norm": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "softplus": lambda x: F.softplus(x, 2.0),
    "div": lambda x: x / (x * x + 1),
    "pow": lambda x: x**3,
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "sum": lambda x: torch.stack([x, 2 * x]).sum(0),
    "pad": lambda x: F.pad(x, (0, 0, 1, 0))[:, :, :-1],
    "roll": lambda x: F.pad(x.roll(1, 2)[:, :, 1:], (0, 0, 1, 0)),
    "flip": lambda x: x.flip(1),
    "where": lambda x: torch.where(TRIANGLE[:, 3:4], x, 0.0),
    "pixel_unshuffle": lambda x: F.pixel_shuffle(F.pixel_unshuffle(F.pad(x, (0, 1, 0, 1)), 2), 2)[:, :, :5, :5],
    "float": lambda x: x.double().float(),
    "rand_like": lambda x: x if torch.rand_like(x).min() >= 0 else -x,
    "logit": lambda x: x.sigmoid().logit(),
}


@pytest.mark.parametrize("name", BEYOND_LIMITS)
def test_a_stated_limit_is_a_limit(name: str) -> None:
    assert any(name in row.names and row.limits for row in ROWS)
    call, reason = BEYOND_LIMITS[name]
    with pytest.raises(Unsupported, match=reason):
        Sampler(Around(call), (1, 5, 5), levels=3)


@pytest.mark.parametrize("name", WITHIN_LIMITS)
def test_what_keeps_to_a_stated_limit_is_supported(name: str) -> None:
    Sampler(Around(WITHIN_LIMITS[name]), (1, 5, 5), levels=3)


ENDS = {
    "softmax": (lambda x: x.softmax(1), heads.Categorical(3, probabilities=True)),
    "log_softmax": (lambda x: x.log_softmax(1), None),
    "log": (lambda x: x.softmax(1).log(), None),
    "softmin": (lambda x: F.softmin(x, 1), heads.Categorical(3, probabilities=True)),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_over_the_levels_is_supported_and_another_is_not(name: str) -> None:
    end, head = ENDS[name]
    Sampler(Around(end=end), (1, 5, 5), levels=3, head=head)
    with pytest.raises(Unsupported, match="not over the levels|last call"):
        Sampler(Around(end=lambda x: end(x.movedim(1, 2)).movedim(2, 1)), (1, 5, 5), levels=3, head=head)
    with pytest.raises(Unsupported, match="last call"):
        Sampler(Around(end), (1, 5, 5), levels=3)


# What the page advises in place of refused calls.
INSTEAD = {
    "variance": lambda x: (x - x.mean(1, keepdim=True)).square().mean(1, keepdim=True) + x,
    "logsumexp": lambda x: x.exp().sum(1, keepdim=True).log() + x,
    "log1p": lambda x: (1 + x * x).log(),
    "softshrink": lambda x: F.relu(x - 0.1) - F.relu(-x - 0.1),
    "indices": lambda x: x[:, [3, 0, 0, 1]],
    "multiplied mask": lambda x: x * TRIANGLE,
}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_advised_is_supported(name: str) -> None:
    Sampler(Around(INSTEAD[name]), (1, 5, 5), levels=3)

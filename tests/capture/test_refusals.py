"""What stays refused, and what the messages say to do about it: loops over pixels, other orders, logits of -inf."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import NonFiniteLogits, NotCausal, Sampler, Unsupported, check_causal, receptive_field
from pixelcnn_fast.program.orders import OTHERS
from tests.system.agreement import assert_runtimes_agree
from tests.tiers import tiered

LEVELS, SIZE = 6, (4, 5)


class Net(nn.Module):
    """Two masked convolutions; turn: of their masks, and so of the order in which pixels are drawn."""

    def __init__(self, turn: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Conv2d(8, LEVELS, 1)
        for conv, last in ((self.first, 4), (self.second, 5)):
            mask = (torch.arange(9) < last).view(3, 3)
            conv.weight.data *= turn(mask)

    def logits(self, x: Tensor) -> Tensor:
        return 5 * self.out(torch.relu(self.second(torch.relu(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


def built(model: nn.Module, size: tuple[int, int] = SIZE, **arguments: Any) -> Sampler:
    return Sampler(model.double(), (1, *size), levels=LEVELS, image_form="unit", **arguments)


# -- other orders


class Turned(nn.Module):
    def __init__(self, model: nn.Module, advised: str) -> None:
        super().__init__()
        self.model, self.advised = model, advised

    def forward(self, x: Tensor) -> Tensor:
        turned: Tensor = eval(self.advised, {"model": self.model, "x": x})
        return turned


ORDERS = {str(order): order for order in OTHERS}
QUICK = {"rows from the bottom, each from the right", "columns from the right, each from the top"}


@pytest.mark.parametrize("name", tiered(ORDERS, QUICK.__contains__))
def test_another_order_is_named_and_what_is_advised_does_it(name: str) -> None:
    order = ORDERS[name]
    with pytest.raises(NotCausal, match=f"another order, by {order}: turn the kernels") as failed:
        built(Net(order.turned_back))
    field = receptive_field(Net(order.turned_back).double(), (1, *SIZE), levels=LEVELS, image_form="unit")
    assert field.leak is not None and str(order) in field.leak
    with pytest.raises(NotCausal, match=f"another order, by {order}: turn the kernels"):
        built(Net(order.turned_back), runtime="reference")
    said = re.search(
        r"\((weight.*)\) and the images .* \((images.*)\), or .* returns (.*)$", str(failed.value)
    )
    assert said is not None
    kernels, images, module = said.groups()
    as_is, by_kernels = Net(order.turned_back), Net()
    for mine, turned in ((as_is.first, by_kernels.first), (as_is.second, by_kernels.second)):
        turned.weight.data = eval(kernels, {"weight": mine.weight.data})
        assert not turned.weight[:, :, 2].any()
    height, width = order.turned(torch.zeros(SIZE)).shape
    fast = built(by_kernels, (height, width))
    slow = built(Turned(as_is, module), (height, width), runtime="reference")
    u = torch.rand(2, 1, height, width, dtype=torch.float64)
    drawn = fast.sample(2, noise=u)
    assert torch.equal(slow.sample(2, noise=u), drawn)
    turned_back = eval(images, {"images": drawn})
    with torch.no_grad():
        expected = as_is(turned_back.double() / (LEVELS - 1))
    log_p = -F.cross_entropy(expected, turned_back[:, 0].long(), reduction="none").sum((1, 2))
    torch.testing.assert_close(fast.log_prob(drawn), log_p)


def test_a_leak_is_no_other_order() -> None:
    for turn in (lambda mask: torch.ones_like(mask), lambda mask: mask | (torch.arange(9) == 8).view(3, 3)):
        with pytest.raises(NotCausal, match="so the output sees a later pixel; is the mask applied"):
            check_causal(Net(turn).double(), (1, *SIZE), levels=LEVELS, image_form="unit")
        with pytest.raises(NotCausal, match="or all at once$"):
            built(Net(turn), runtime="reference")


# -- loops over pixels


class Writes(Net):
    """Each pixel's logits are written in turn."""

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), LEVELS, *x.shape[2:])
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                out[:, :, i, j] = self.logits(x)[:, :, i, j]
        return out


class Crops(Net):
    """A convolution of each pixel's surroundings."""

    def forward(self, x: Tensor) -> Tensor:
        around, (height, width) = F.pad(x, (1, 1, 1, 1)), x.shape[2:]
        found = [
            F.conv2d(around[:, :, i : i + 3, j : j + 3], self.first.weight).flatten(1)
            for i in range(height)
            for j in range(width)
        ]
        return self.out(torch.stack(found, -1).unflatten(-1, (height, width)).tanh())


class Steps(Net):
    """A recurrence over all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        state, before, found = None, x.new_zeros(len(x), 1), list[Tensor]()
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                state = self.cell(before, state)
                found.append(state[0])
                before = x[:, :, i, j]
        return self.out(torch.stack(found, -1).unflatten(-1, x.shape[2:]))


class Draws(Net):
    """The image itself is drawn."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                levels = torch.multinomial(self.logits(x)[:, :, i, j].softmax(1), 1)
                x[:, :, i, j] = levels / (LEVELS - 1)
        return self.logits(x)


@pytest.mark.parametrize("kind", [Writes, Crops, Steps, Draws])
def test_a_loop_over_pixels_is_refused(kind: type[Net]) -> None:
    message = "cell: a loop over pixels" if kind is Steps else "model: a loop over pixels"
    with pytest.raises(Unsupported, match=f"{message}.*by convolutions.*runtime='reference'") as failed:
        built(kind())
    assert "If the loop draws the image, pass the module that it calls" in str(failed.value)
    if kind is Draws:
        with pytest.raises(Unsupported, match="or on chance, as where the forward draws the image itself"):
            built(kind(), runtime="reference")
    else:
        built(kind(), runtime="reference").sample(1)


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (8, 8)])
def test_what_is_cut_up_otherwise_is_no_loop_over_pixels(size: tuple[int, int]) -> None:
    class CutUp(Net):
        def forward(self, x: Tensor) -> Tensor:
            many = torch.cat([self.first(x).tanh()] * 8, 1)
            rows = torch.stack([many[:, :, i] for i in range(size[0])], 2)
            by_channel = torch.stack([rows[:, k] for k in range(64)], 1)
            weight = torch.stack([self.out.weight[:, k] for k in range(8)], 1)
            return F.conv2d(by_channel[:, :8], weight)

    assert_runtimes_agree(built(CutUp(), size), 2)


# -- logits of -inf

MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "filled": lambda y: y.masked_fill(torch.arange(LEVELS)[:, None, None] > 3, -torch.inf),
    "added": lambda y: y + torch.tensor([0.0, 0, 0, 0, 0, -torch.inf])[:, None, None],
    "joined": lambda y: torch.cat([y[:, :4], torch.full_like(y[:, 4:], -torch.inf)], 1),
}


@pytest.mark.parametrize("runtime", ["auto", "reference"])
@pytest.mark.parametrize("name", MASKS)
def test_logits_of_minus_infinity_are_refused(name: str, runtime: Any) -> None:
    class Masked(Net):
        def forward(self, x: Tensor) -> Tensor:
            return MASKS[name](self.logits(x))

    with pytest.raises(
        NonFiniteLogits, match=r"row 0, column 0: the logits are -inf; .* such as -1e9$"
    ) as failed:
        built(Masked(), runtime=runtime)
    assert failed.value.found == -torch.inf and str(failed.value.moved(2)).startswith("image 2, channel 0")


def test_finite_numbers_rule_levels_out() -> None:
    class Masked(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.logits(x).masked_fill(torch.arange(LEVELS)[:, None, None] > 3, -1e9)

    assert assert_runtimes_agree(built(Masked()), 4).unique().tolist() == [0, 1, 2, 3]

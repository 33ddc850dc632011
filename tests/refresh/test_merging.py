"""Merged calls give what the recorded ones give, bit by bit, and are fewer."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import Leaf
from pixelcnn_fast.capture.record.weight_recorder import WeightRecorder
from pixelcnn_fast.program.calls import Memory, View
from pixelcnn_fast.refresh.merging import Merged
from pixelcnn_fast.refresh.reevaluation import Reevaluation

Weights = dict[str, Tensor]
Function = Callable[[Weights], list[Tensor]]


def random_weights(seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    layers = {f"{name}{i}": random(6) for i in range(4) for name in ("scale", "mean")}
    return {"kernel": random(4, 6, 3, 3), "mask": random(4, 6, 3, 3).sign(), **layers, "number": random(1)[0]}


def taps(x: Weights) -> list[Tensor]:
    kernel = (x["kernel"] * x["mask"]).permute(2, 3, 1, 0).reshape(9, 6, 4).double().contiguous()
    number = x["number"].double()
    scaled = [(kernel[i] * number).float() for i in range(5)]
    return [torch.cat(scaled[:3]), torch.cat(scaled[3:])]


def norms(x: Weights) -> list[Tensor]:
    variances = [(s := x[f"scale{i}"].double()) * s for i in range(4)]
    scales = [v.add(1e-5).rsqrt().clone() for v in variances]
    return [(x[f"mean{i}"].double() * scales[i] - scales[i]).float() for i in range(4)]


def uneven(x: Weights) -> list[Tensor]:
    rows = x["kernel"].reshape(4, 54).clone()
    return [rows[0] * 2, rows[1] * 2, rows[3] * 2, rows[0, :27] * 2, rows[2, 20:47] * 2, rows[1, 3:30] * 2.0]


def two_moving(x: Weights) -> list[Tensor]:
    kernel, mask = x["kernel"].flatten(1).clone(), x["mask"].flatten(1)
    return [kernel[i] * mask[3 - i] for i in range(4)] + [kernel[i] + mask[i] for i in range(4)]


def other_dtypes(x: Weights) -> list[Tensor]:
    kernel = x["kernel"].flatten(1).clone()
    halves = [(kernel[i] * 3).view(torch.bfloat16)[1::2] for i in range(4)]
    copies = [kernel[i].clone().view(torch.bfloat16)[3:7].clone() for i in range(4)]
    return [*(half * 2 for half in halves), *copies, *(kernel[i].to(torch.bfloat16) for i in range(4))]


def scalars(x: Weights) -> list[Tensor]:
    numbers, factor = x["scale0"].clone(), x["mean0"].double()[0]
    return [numbers[i] * factor for i in range(6)]


def multiples(x: Weights) -> list[Tensor]:
    kernel = x["kernel"].flatten(1).clone()
    return [torch.add(kernel[i], kernel[i + 1], alpha=0.3) for i in range(3)]


def layouts(x: Weights) -> list[Tensor]:
    kernel = x["kernel"].clone()
    turned = [kernel[i].permute(1, 2, 0) * 2 for i in range(4)]
    joined = [torch.cat([t.contiguous() for t in turned]), torch.cat([k.permute(1, 2, 0) for k in kernel])]
    return [*joined, *(t.clone() for t in turned), kernel[::2] * 2]


def broadcast(x: Weights) -> list[Tensor]:
    kernel, mask = x["kernel"].flatten(2).clone(), x["mask"].flatten()
    return [kernel[i] * mask[9 * i : 9 * i + 9] for i in range(4)] + [kernel[i] * mask[:9] for i in range(4)]


def same_twice(x: Weights) -> list[Tensor]:
    kernel = x["kernel"].clone()
    return [
        kernel[1] * 2,
        kernel[1] * 2,
        kernel[2].expand(2, 6, 3, 3).clone(),
        torch.cat([kernel[1], kernel[0]]),
    ]


def nothing(x: Weights) -> list[Tensor]:
    return [
        torch.cat([x["kernel"][:0], x["kernel"][:0]]) * 2,
        x["kernel"][:0].double(),
        x["mask"][:0].double(),
    ]


def other_axes(x: Weights) -> list[Tensor]:
    kernel = x["kernel"].clone()
    return [torch.cat([kernel[0], kernel[1]], 1), torch.cat([kernel[0], kernel[1]], dim=0)]


def other_casts(x: Weights) -> list[Tensor]:
    kernel = x["kernel"].flatten(1).clone()
    columns = [x[f"scale{i}"].expand(5, 6)[:, 0].double() for i in range(4)] + [
        x["kernel"][:, i, 0, 0].double() for i in range(6)
    ]
    return [kernel[0].double(), kernel[1].bfloat16(), kernel[2].double(), *columns]


def chained_columns(x: Weights) -> list[Tensor]:
    columns = [(x["kernel"][..., i] * 2 + 1).double() for i in range(3)]
    joined = torch.cat([x["kernel"].flatten(1)[:, i] * 2 for i in range(6)]).view(6, 4)
    return [torch.stack(columns, -1), joined, joined.flip(0), joined.sum(0)]


def signs_of_zero(x: Weights) -> list[Tensor]:
    kernel = x["kernel"].flatten(1).clone()
    return [kernel[0] * 0.0, kernel[1] * -0.0, kernel[2] * 0.0, kernel[3] / math.inf]


def roots(x: Weights) -> list[Tensor]:
    halves = x["kernel"].flatten(1).abs().add(0.1).to(torch.bfloat16)
    return [*(halves[i].rsqrt() for i in range(4)), *(halves.double()[i].rsqrt() for i in range(4))]


FUNCTIONS = [
    taps,
    norms,
    uneven,
    two_moving,
    other_dtypes,
    scalars,
    multiples,
    layouts,
    broadcast,
    other_axes,
    other_casts,
    chained_columns,
    signs_of_zero,
    roots,
    same_twice,
    nothing,
]


def recorded(function: Function) -> tuple[WeightRecorder, list[Tensor]]:
    recorder = WeightRecorder()
    with recorder:
        weights = random_weights()
        for name, x in weights.items():
            recorder.leaf(Leaf(x, ((name, View.of(x, -1)),)))
        return recorder, function(weights)


def are_identical(x: Tensor, y: Tensor) -> bool:
    """Bit by bit, and laid out in the same way."""
    alike = (x.dtype, x.shape, x.stride()) == (y.dtype, y.shape, y.stride())
    return alike and torch.equal(x, y) and torch.equal(x.signbit(), y.signbit())


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_merged_calls_give_the_same(function: Function) -> None:
    recorder, tensors = recorded(function)
    views = [recorder.view(x) for x in tensors]
    merged = Merged(recorder.recording.calls, views)
    assert len(merged.calls) <= len(recorder.recording.calls)
    evaluate = Reevaluation(tensors, recorder)
    for seed in (0, 1):
        weights = random_weights(seed)
        leaves = {slot: weights[leaf.parameters[0][0]] for slot, leaf in recorder.recording.leaves.items()}
        memory = Memory(1, leaves)
        for call in merged.calls:
            memory.run(call)
        evaluated = evaluate(weights)
        assert evaluated is not None
        for view, again, expected in zip(views, evaluated, function(weights), strict=True):
            assert are_identical(memory.tensor(merged.view(view)), expected)
            assert are_identical(again, expected)


@pytest.mark.parametrize(
    "function, expected",
    [
        # the mask, the number and the kernel in float64, its axes in order, and for all taps product and float32
        (taps, {"mul": 2, "_to_copy": 3, "clone": 1}),
        # the means and the scales are put together
        (norms, {"cat": 1, "_to_copy": 2, "mul": 2, "sub": 1, "add": 1, "rsqrt": 1}),
        (multiples, {"add": 3}),  # a product and a sum may be rounded once or twice
    ],
    ids=["taps", "norms", "multiples"],
)
def test_what_is_alike_is_done_at_once(function: Function, expected: dict[str, int]) -> None:
    recorder, tensors = recorded(function)
    calls = Merged(recorder.recording.calls, [recorder.view(x) for x in tensors]).calls
    found = Counter(call.name.partition("::")[2].partition(".")[0] for call in calls)
    assert found == expected

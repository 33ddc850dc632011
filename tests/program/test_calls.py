"""Recorded calls: what they need, how they run for batches of other sizes, and what is computed only once."""

import pickle

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast.compiler import capture_model
from pixelcnn_fast.errors import ModelFailed
from pixelcnn_fast.program.calls import (
    BatchSize,
    Call,
    Memory,
    View,
    extent,
    needed,
    out_of_place,
    plain_name,
)
from pixelcnn_fast.program.conditions import Conditioning, ConditionProgram
from pixelcnn_fast.program.operands import ConditionOperand
from pixelcnn_fast.program.program import condition_operands
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.system.networks import pixelcnn

FLOAT = torch.float32


def view(slot: int, *size: int | BatchSize) -> View:
    """A contiguous tensor, with the batch first if there is one."""
    strides: list[int | BatchSize] = [1]
    for many in size[:0:-1]:
        assert isinstance(strides[0], int) and isinstance(many, int)
        strides.insert(0, strides[0] * many)
    return View(slot, size, tuple(strides[: len(size)]), 0, FLOAT)


def call(name: str, *args: object, out: View) -> Call:
    return Call(f"aten::{name}", args, {}, (out,))


N = BatchSize(1)
LABELS = View(0, (N,), (1,), 0, torch.long)


def test_sizes_follow_the_batch() -> None:
    made = view(1, N, 2)
    ones = Call("aten::ones", ([N, 2],), {}, (made,))
    last = View(1, (2,), (1,), BatchSize(2, -2), FLOAT)
    for n in (1, 3):
        memory = Memory(n, {})
        memory.run(ones)
        memory.run(Call("aten::fill_.Scalar", (last, 7), {}, (last,)))
        assert memory.tensor(made).tolist() == [[1, 1]] * (n - 1) + [[7, 7]]


def test_results_are_laid_out_as_they_were_recorded() -> None:
    """A view of a result counts on its strides."""
    across = View(1, (2, 3), (1, 2), 0, FLOAT)
    memory = Memory(1, {0: torch.arange(6.0).view(2, 3)})
    memory.run(call("neg", view(0, 2, 3), out=across))
    assert memory.tensor(across).tolist() == [[-0.0, -1, -2], [-3, -4, -5]]
    assert memory.tensor(view(1, 6)).tolist() == [-0.0, -3, -1, -4, -2, -5]


def test_results_lie_where_they_were_recorded() -> None:
    """Not at the beginning of their storage; or nowhere, if they are empty."""
    memory, later = Memory(1, {}), View(1, (2,), (1,), 3, FLOAT)
    memory.put(later, torch.tensor([7.0, 8.0]))
    assert memory.tensor(later).tolist() == [7, 8]
    memory.put(View(2, (0, 2), (2, 1), 0, FLOAT), torch.zeros(0, 2))
    assert memory[2].shape == (0, 2) and extent((0, 2), (2, 1), 3) == 0


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("aten::add_.Tensor", "aten::add.Tensor"),
        ("aten::relu_", "aten::relu"),
        ("aten::__ilshift__.Scalar", "aten::__lshift__.Scalar"),
        ("aten::__lshift__.Scalar", "aten::__lshift__.Scalar"),
        ("aten::mul.Tensor", "aten::mul.Tensor"),
    ],
)
def test_each_call_that_writes_has_one_that_does_not(name: str, plain: str) -> None:
    assert out_of_place(name) == plain and plain.startswith(f"aten::{plain_name(name)}")


def test_which_results_have_a_size_that_follows_from_values() -> None:
    truth, places = View(0, (3,), (1,), 0, torch.bool), View(1, (2,), (1,), 0, torch.long)
    picked = view(2, 2)
    assert not call("index.Tensor", truth, [places], out=picked).has_size_of_values
    assert call("index.Tensor", places, [truth], out=picked).has_size_of_values
    assert call("nonzero", places, out=picked).has_size_of_values
    assert not call("neg", places, out=picked).has_size_of_values


def test_what_is_needed_includes_what_is_written_into_a_view() -> None:
    a = call("ones", [4], out=view(1, 4))
    b = Call("aten::mul_.Tensor", (View(1, (2,), (1,), 2, FLOAT), 3), {}, (View(1, (2,), (1,), 2, FLOAT),))
    c = call("zeros", [4], out=view(2, 4))
    d = call("neg", view(1, 4), out=view(3, 4))
    assert needed([a, b, c, d], [3]) == [a, b, d]
    assert needed([a, b, c, d], [2]) == [c]


def test_a_call_is_pickled_by_its_name() -> None:
    before = call("neg", view(0, N, 2), out=view(1, N, 2))
    assert before.operator is torch.ops.aten.neg.default
    after = pickle.loads(pickle.dumps(before))
    assert after.operator is before.operator and after.args == before.args and after.results == before.results


def operand(slot: int, index: Tensor, per_image: bool = True) -> ConditionOperand:
    return ConditionOperand(slot, index, per_image)


def test_what_depends_on_nothing_is_computed_once_and_never_changes() -> None:
    """Here a constant is changed after it was read, and the embeddings afterwards."""
    table, changed = view(1, 3, 2), view(2, 3, 2)
    calls = [
        call("mul.Tensor", table, 2, out=changed),
        call("embedding", changed, LABELS, out=view(3, N, 2)),
        Call("aten::zero_", (changed,), {}, (changed,)),
        call("embedding", changed, LABELS, out=view(4, N, 2)),
    ]
    weight = torch.arange(6.0).view(3, 2)
    conditions = ConditionProgram(calls, {1: weight}, (LABELS, None))
    first, second = operand(3, torch.tensor([0, 1])), operand(4, torch.tensor([1, 0]))
    for labels in ([2, 0, 1], [1]):
        found = conditions([first, second], Conditioning(torch.tensor(labels)), len(labels))
        assert torch.equal(found[first], 2 * weight[labels])
        assert torch.equal(found[second], torch.zeros(len(labels), 2))
    assert torch.equal(weight, torch.arange(6.0).view(3, 2))
    with pytest.raises(ModelFailed, match=r"IndexError: index out of range in self\nIt was given 1 images"):
        conditions([first], Conditioning(torch.tensor([3])), 1)


PLACES = torch.arange(24)
EVEN = {
    "as they lie": PLACES.view(2, 3, 4),
    "channels last": PLACES.view(4, 2, 3).permute(1, 2, 0),
    "from the middle on": PLACES[5:17].view(2, 3, 2),
    "one for all pixels": PLACES[3:7].expand(2, 3, 4),
    "one channel of a vector": PLACES[7:8],
    "every other": PLACES[1::2],
}
UNEVEN = {"from the end": PLACES.flip(0), "one missing": PLACES[PLACES != 5], "none": PLACES[:0]}


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("places", [*EVEN, *UNEVEN])
def test_elements_that_lie_evenly_are_not_looked_up_one_by_one(places: str, per_image: bool) -> None:
    index = {**EVEN, **UNEVEN}[places]
    asked = operand(1, index, per_image)
    assert (asked.layout is None) == (places in UNEVEN)
    memory = torch.arange(3 * 24.0).view(24, 3).t() if per_image else torch.arange(48.0)[::2]
    whole = View.of(memory, 1) if not per_image else View(1, (N, 24), (24, 1), 0, FLOAT)
    calls = [call("mul.Tensor", view(2, N, 24), 1, out=whole)] if per_image else []
    leaves = {} if per_image else {1: memory}
    conditions = ConditionProgram(calls, leaves, (None, view(2, N, 24)))
    found = conditions([asked], Conditioning(None, memory if per_image else torch.zeros(3, 24)), 3)[asked]
    assert torch.equal(found, memory[:, index] if per_image else memory[index].expand(3, *index.shape))


@pytest.mark.parametrize("by_labels", [False, True])
def test_a_table_that_calls_write_into_is_as_it_was_for_the_next_batch(by_labels: bool) -> None:
    """Its first row is increased by one, or by the row that the label looks up."""
    table, row, found = view(1, 3, 2), View(1, (1, 2), (2, 1), 0, FLOAT), view(2, N, 2)
    calls = [
        call("embedding", table, LABELS, out=found),
        Call("aten::add_.Tensor", (row, found if by_labels else 1), {}, (row,)),
        call("embedding", table, LABELS, out=view(3, N, 2)),
    ]
    weight = torch.arange(1, 7.0).view(3, 2)
    conditions, before = ConditionProgram(calls, {1: weight}, (LABELS, None)), weight.clone()
    for index in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        asked = operand(3, index), operand(2, index)
        for _ in range(2):
            results = conditions(asked[:1], Conditioning(torch.tensor([0])), 1) | conditions(
                asked, Conditioning(torch.tensor([0])), 1
            )
            increased = before[:1] + (before[:1] if by_labels else 1)
            assert torch.equal(results[asked[0]], increased[:, index])
    assert torch.equal(weight, before)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("size", [(2,), (4, 5, 2)])
def test_operands_are_elements_of_what_was_computed(size: tuple[int, ...], per_image: bool) -> None:
    """Of the whole table, the same for each image, or of what each image's label looks up."""
    index = torch.randint(2 if per_image else 6, size, generator=torch.Generator().manual_seed(0))
    weight, labels = torch.randn(3, 2), torch.tensor([2, 0, 1])
    calls = [
        call("neg", view(1, 3, 2), out=view(2, 3, 2)),
        call("embedding", view(2, 3, 2), LABELS, out=view(3, N, 2)),
    ]
    asked = operand(3 if per_image else 2, index, per_image)
    found = ConditionProgram(calls, {1: weight}, (LABELS, None))([asked], Conditioning(labels), 3)[asked]
    expected = -weight[labels][:, index] if per_image else -weight.flatten()[index].expand(3, *size)
    assert torch.equal(found, expected)


def test_what_is_given_is_described_in_few_words() -> None:
    codes = torch.tensor([[3, 1], [1, 3]])
    assert Conditioning().described() == ""
    assert Conditioning(torch.arange(8)).described() == ", labels [8] of 0, 1, 2, 3, 4, 5, 6, 7"
    assert Conditioning(torch.arange(9)).described() == ", labels [9] of 0...8"
    assert Conditioning(None, codes).described() == ", a condition of torch.int64 [2, 2] of 1, 3"
    assert Conditioning(None, codes.float()).described() == ", a condition of torch.float32 [2, 2]"


def test_only_conditions_of_real_numbers_are_converted() -> None:
    labels, codes = torch.tensor([1, 0]), torch.tensor([[3, 1], [1, 3]])
    for condition, dtype in ((codes, torch.int64), (codes.float(), torch.float64), (codes > 1, torch.bool)):
        given = Conditioning(labels, condition).in_dtype(torch.float64)
        assert (
            isinstance(given.condition, Tensor) and given.condition.dtype == dtype and given.labels is labels
        )


def test_the_smallest_table_bounds_what_is_looked_up() -> None:
    """Labels in two tables, of which one is read by a copy; codes in a third; and what is computed of them in none."""
    labels, codes = LABELS, View(1, (N, 4), (4, 1), 0, torch.long)
    copied, shifted = (View(slot, (N,), (1,), 0, torch.long) for slot in (2, 3))
    calls = [
        call("embedding", view(4, 7, 2), labels, out=view(5, N, 2)),
        call("_to_copy", labels, out=copied),
        call("index_select", view(6, 5, 2), 0, copied, out=view(7, N, 2)),
        call("add.Scalar", labels, 1, out=shifted),
        call("embedding", view(8, 3, 2), shifted, out=view(9, N, 2)),
        call("embedding", view(10, 9, 2), codes, out=view(11, N, 4, 2)),
    ]
    assert [ConditionProgram(calls, {}, (labels, codes)).rows_looked_up(which) for which in (0, 1)] == [5, 9]
    assert [ConditionProgram(calls, {}, (labels, None)).rows_looked_up(which) for which in (0, 1)] == [
        5,
        None,
    ]


def test_conditions_of_a_model_are_pickled() -> None:
    model = WrappedModel(pixelcnn(classes=3), (1, 4, 4))
    program, conditions, *_ = capture_model(model)
    operands = condition_operands(program.instructions)
    labels = Conditioning(torch.tensor([2, 0, 1]))
    expected = conditions(operands, labels, 3)
    found = pickle.loads(pickle.dumps(conditions))(operands, labels, 3)
    assert operands and all(torch.equal(found[each], expected[each]) for each in operands)


def test_one_batch_of_conditions_is_run_at_once() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.conv = nn.Embedding(3, 7), nn.Conv2d(1, 7, (1, 2))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.conv(nn.functional.pad(x, (2, 0)))[..., :-1]
            return h + self.embedding(y)[:, :, None, None]

    model = WrappedModel(Counting(), (1, 4, 4), levels=7, image_form="unit")
    program, conditions, *_ = capture_model(model)
    (each,) = condition_operands(program.instructions)
    alone = [conditions([each], Conditioning(torch.tensor([k])), 1)[each] for k in (0, 2, 1, 1, 0)]
    together = conditions([each], Conditioning(torch.tensor([0, 2, 1, 1, 0])), 5)[each]
    assert torch.equal(together, torch.cat(alone))

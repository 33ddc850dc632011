"""What a model takes besides images: which labels, what kind of condition, and whether it matters at all."""

import re
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, heads
from pixelcnn_fast.errors import CaptureMismatch, ModelFailed, Unsupported
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.user_model.labels import Labels, first_refused
from tests.needs import RUNTIMES
from tests.system.agreement import assert_runtimes_agree, noise
from tests.system.networks import ABOVE, LEFT, Masked

LEVELS, SHAPE = 5, (1, 4, 5)


class Net(nn.Module):
    """conv_in(x) + what ``body`` makes of the rest."""

    n_classes: int | None

    def __init__(self, body: Callable[..., Any], classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = Masked(1, 6, [*ABOVE, *LEFT])
        self.embedding, self.linear, self.map = nn.Embedding(classes, 6), nn.Linear(10, 6), nn.Conv2d(2, 6, 1)
        self.codes = nn.Embedding(5, 6)
        self.conv_out = nn.Conv2d(6, LEVELS, 1)
        self.body = body
        self.double()

    def logits(self, x: Tensor, *given: Tensor | None) -> Tensor:
        return 6 * self.conv_out(torch.tanh(self.conv_in(x) + self.body(self, *given)))


class Labelled(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.logits(x, y)


def everywhere(vector: Tensor) -> Tensor:
    return vector[:, :, None, None]


def sampler(net: nn.Module, **arguments: Any) -> Sampler:
    return Sampler(net, SHAPE, levels=LEVELS, image_form="unit", **arguments)


# -- which labels a model takes

TEN = {
    "an embedding": lambda net, y: everywhere(net.embedding(y)),
    "one-hot": lambda net, y: everywhere(net.linear(F.one_hot(y, 10).double())),
    "rows of a parameter": lambda net, y: everywhere(net.embedding.weight[y]),
    "scattered": lambda net, y: everywhere(
        net.linear(torch.zeros(len(y), 10, dtype=torch.float64).scatter_(1, y[:, None], 1.0))
    ),
}


def checked(net: Net, y: Tensor) -> Tensor:
    """Its condition part takes any label."""
    if int(y.max()) > 9:
        raise ValueError("there are ten classes")
    return everywhere(net.linear((y[:, None] == torch.arange(10)).double()))


@pytest.mark.parametrize("name", [*TEN, "checked"])
@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_labels_out_of_range_are_refused_with_the_range(name, runtime):
    built = sampler(Labelled(TEN.get(name, checked)))
    assert built.sample(2, torch.tensor([9, 3]), runtime=runtime).shape == (2, *SHAPE)
    for labels, span in (([10, 0], r"0\.\.\.10"), ([-1, 3], r"-1\.\.\.3"), ([100000, 1], r"1\.\.\.100000")):
        with pytest.raises(ValueError, match=rf"^labels span {span}, expected 0\.\.\.9$"):
            built.sample(2, torch.tensor(labels), runtime=runtime)


@pytest.mark.parametrize("classes", [1, 2, 3, 64, 1000])
def test_any_number_of_classes_is_found(classes):
    net = Labelled(TEN["an embedding"], classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if classes == 1 else "error")  # one label changes nothing
        if classes == 1:
            with pytest.raises(ModelFailed, match="labels"):
                sampler(net)  # it must say n_classes = 1
            net.n_classes = 1
        built = sampler(net)
    highest = torch.tensor([classes - 1])
    assert torch.equal(
        *(built.sample(1, highest, noise=noise(1, SHAPE), runtime=r) for r in ("reference", "auto"))
    )
    with pytest.raises(ValueError, match=rf"expected 0\.\.\.{classes - 1}$"):
        built.sample(1, highest + 1)


def test_a_model_that_takes_any_label_is_given_any():
    built = sampler(
        Labelled(lambda net, y: everywhere(net.linear((y[:, None] == torch.arange(10)).double())))
    )
    assert_runtimes_agree(built, 5, labels=torch.tensor([0, 9, 10, 77, 123456]))
    with pytest.raises(ValueError, match=r"labels span -1\.\.\.0, expected 0 or more"):
        built.sample(2, torch.tensor([0, -1]))


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([True, False]), torch.ones(2), torch.zeros(1, dtype=torch.long), torch.zeros(2, 1).int()],
)
def test_labels_of_another_kind_or_shape_are_refused(labels):
    kind = re.escape(f"{labels.dtype} {list(labels.shape)}")
    with pytest.raises(ValueError, match=rf"^labels are {kind}, expected integers \[2\]$"):
        sampler(Labelled(TEN["an embedding"])).sample(2, labels)


def test_labels_are_not_tried_again_and_again(monkeypatch):
    built = sampler(
        Labelled(lambda net, y: everywhere(net.linear((y[:, None] == torch.arange(10)).double())))
    )
    tried, takes = [], built._engine.model.takes

    def counted(*example):
        tried.append(1)
        return takes(*example)

    monkeypatch.setattr(built._engine.model, "takes", counted)
    for _ in range(3):
        built.sample(1, torch.tensor([5000]))
        built.sample(1, torch.tensor([4999]))
    assert len(tried) == 2  # label 0, and label 5000


def test_a_label_beyond_the_first_is_checked_though_nobody_says_how_many_there_are():
    def odd(net, y):
        e = net.embedding(y)
        return everywhere(e * 5 if (y == 7).any() else e)

    with pytest.raises((CaptureMismatch, Unsupported)):
        sampler(Labelled(odd))


@pytest.mark.parametrize("bound", [1, 2, 3, 9, 10, 64, 999, 2**16, 2**16 + 1])
@pytest.mark.parametrize("taken", [1, 2])
def test_the_first_that_is_refused_is_found_in_a_few_steps(bound, taken):
    tried = []

    def takes(k):
        tried.append(k)
        return k < bound

    expected = bound if bound <= 2**16 else None
    if taken <= bound:
        assert first_refused(takes, taken, 2**16) == expected
        assert len(tried) <= 33 and max(tried, default=0) <= 2**16


def test_more_classes_are_found_than_are_looked_for_at_first():
    labels, takes = Labels(None), lambda label: label < 70000
    labels.explore(takes)
    assert labels.why_not(0, 69999, takes) is None
    assert labels.why_not(0, 100000, takes) == "labels span 0...100000, expected 0...69999"


def test_a_model_that_fails_for_every_label_alone_is_not_explored():
    labels = Labels(None)
    labels.explore(lambda label: False)
    assert labels.classes is None and labels.why_not(0, 5, lambda label: False) is None
    assert labels.why_not(0, 10**6, None) is None and "0 or more" in str(labels.why_not(-2, 1, None))


# -- a condition


class Conditioned(Net):
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.logits(x, condition)


class OtherName(Net):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.logits(x, h)


class WithDefaults(Net):
    def forward(self, x: Tensor, condition: Tensor, scale: float = 2.0, **ignored: Any) -> Tensor:
        return self.logits(x, scale * condition)


class Both(Net):
    def forward(self, x: Tensor, y: Tensor, condition: Tensor) -> Tensor:
        return self.logits(x, y, condition)


class BothByPosition(Net):
    def forward(self, x: Tensor, y: Tensor, h: Tensor) -> Tensor:
        return self.logits(x, y, h)


class ByPosition(Net):
    def forward(self, x: Tensor, y: Tensor, /) -> Tensor:
        return self.logits(x, y)


def test_labels_may_be_taken_by_position_alone():
    built = sampler(ByPosition(TEN["an embedding"]))
    assert_runtimes_agree(built, 5, labels=torch.tensor([0, 9, 1, 2, 3]))


@pytest.mark.parametrize("kind", [Conditioned, OtherName, WithDefaults])
def test_one_further_argument_is_the_condition_if_it_has_a_shape(kind):
    built = sampler(kind(lambda net, c: net.map(c)), condition_shape=(2, 4, 5))
    assert not built._engine.model.conditional
    condition = torch.randn(5, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    images = assert_runtimes_agree(built, 5, condition=condition)
    assert not torch.equal(images, assert_runtimes_agree(built, 5, condition=-condition))


@pytest.mark.parametrize("kind", [Both, BothByPosition])
def test_of_two_the_first_is_for_labels(kind):
    built = sampler(
        kind(lambda net, y, c: everywhere(net.embedding(y)) + net.map(c)), condition_shape=(2, 4, 5)
    )
    labels, condition = torch.tensor([0, 9, 1, 2, 3]), torch.randn(5, 2, 4, 5)
    assert_runtimes_agree(built, 5, labels=labels, condition=condition)
    with pytest.raises(ValueError, match=r"expected 0\.\.\.9"):
        built.sample(5, labels + 1, condition=condition)


def test_labels_may_come_after_the_condition() -> None:
    class ConditionFirst(nn.Module):
        def forward(self, x: Tensor, condition: Tensor, y: Tensor, more: int = 0) -> tuple[Tensor, Tensor]:
            assert more == 0
            return y, condition

    given = Conditioning(torch.tensor([3, 1]), torch.rand(2, 4, 5))
    for found, expected in zip(
        given.call(ConditionFirst(), torch.zeros(2, *SHAPE)), given.tensors, strict=True
    ):
        assert expected is not None and torch.equal(found, expected)


def test_labels_for_which_there_is_no_argument_are_an_error_of_the_model() -> None:
    given = Conditioning(torch.tensor([3, 1]), torch.rand(2, 4, 5))
    with pytest.raises(ModelFailed, match=r"(?s)TypeError: .*, labels \[2\] of 1, 3, a condition of"):
        given.call(Conditioned(lambda net, c: c), torch.zeros(2, *SHAPE))


def test_too_little_memory_is_no_error_of_the_model() -> None:
    def body(*_: object) -> Tensor:
        raise MemoryError("for the model")

    with pytest.raises(MemoryError, match="for the model"):
        sampler(Conditioned(body), condition_shape=(2, 4, 5))


def test_what_is_not_written_in_python_is_called_with_the_images() -> None:
    model, images = nn.Module(), torch.full((2, *SHAPE), -1.0)
    model.forward = torch.relu
    assert Conditioning().call(model, images).eq(0).all()
    with pytest.raises(ModelFailed, match="TypeError"):
        Conditioning(condition=images).call(model, images)


def test_the_model_may_write_into_what_it_is_given() -> None:
    class Writing(nn.Module):
        def forward(self, x: Tensor, y: Tensor, condition: Tensor) -> list[Tensor]:
            return [each.zero_() for each in (x, y, condition)]

    images, given = torch.ones(2, *SHAPE), Conditioning(torch.tensor([3, 1]), torch.ones(2, 4))
    given.call(Writing(), images)
    assert all(each is not None and each.all() for each in (images, *given.tensors))


def test_a_condition_without_a_shape_is_asked_for():
    with pytest.raises(ValueError, match="takes a condition: pass condition_shape="):
        sampler(Conditioned(lambda net, c: net.map(c)))


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        (None, "missing"),
        (torch.zeros(3, 2, 4, 5), "torch.float32 [3, 2, 4, 5]"),
        (torch.zeros(2, 2, 5, 4), "torch.float32 [2, 2, 5, 4]"),
        (torch.zeros(2, 2, 4, 5, dtype=torch.complex64), "torch.complex64 [2, 2, 4, 5]"),
    ],
    ids=["missing", "of three images", "turned", "complex"],
)
@pytest.mark.parametrize("runtime", ["reference", "auto"])
def test_a_condition_that_does_not_fit_is_refused(condition, found, runtime):
    built = sampler(Conditioned(lambda net, c: net.map(c)), condition_shape=(2, 4, 5))
    message = re.escape(f"the condition is {found}, expected numbers [2, 2, 4, 5]")
    with pytest.raises(ValueError, match=message):
        built.sample(2, condition=condition, runtime=runtime)


def test_one_hot_conditions_may_be_of_any_type():
    built = sampler(Conditioned(lambda net, c: everywhere(net.linear(c))), condition_shape=(10,))
    one_hot = F.one_hot(torch.tensor([0, 3, 9, 9, 1]), 10)
    images = assert_runtimes_agree(built, 5, condition=one_hot)
    for dtype in (torch.bool, torch.uint8, torch.float32):
        assert torch.equal(assert_runtimes_agree(built, 5, condition=one_hot.to(dtype)), images)


def upsampled(net: Net, codes: Tensor) -> Tensor:
    return net.codes(codes).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "arguments", [dict(), dict(condition_dtype=torch.long), dict(condition_dtype=torch.int32)]
)
def test_a_condition_of_integers(arguments):
    built = sampler(Conditioned(upsampled), condition_shape=(4, 5), **arguments)
    taken = built._engine.model.conditions[None]
    assert taken.dtype == arguments.get("condition_dtype", torch.long)
    assert taken.codes is not None and taken.codes.classes == 5
    codes = torch.randint(5, (5, 4, 5), generator=torch.Generator().manual_seed(0))
    assert_runtimes_agree(built, 5, condition=codes)
    assert_runtimes_agree(built, 5, condition=codes.to(torch.uint8))
    with pytest.raises(
        ValueError, match=r"the condition is torch.float32 \[5, 4, 5\], expected integers \[5, 4, 5\]"
    ):
        built.sample(5, condition=codes.float())
    for runtime in ("reference", "eager", "auto"):
        for wrong, span in ((codes + 1, "1...5"), (codes - 1, "-1...3")):
            with pytest.raises(
                ValueError, match=rf"the integers of the condition span {span}, expected 0\.\.\.4"
            ):
                built.sample(5, condition=wrong, runtime=runtime)
    noise, given = torch.zeros(5, *SHAPE), [codes, codes.tolist(), codes.numpy(), "digits"]
    same, *images = (built.sample(5, condition=cast(Tensor, x), noise=noise) for x in given[:3])
    assert all(torch.equal(x, same) for x in images)
    with pytest.raises(ValueError, match="the condition is no tensor"):
        built.sample(5, condition=cast(Tensor, given[3]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.bool])
def test_a_condition_of_small_integers(dtype):
    built = sampler(
        Conditioned(lambda net, c: upsampled(net, c.long() % 5)),
        condition_shape=(4, 5),
        condition_dtype=dtype,
    )
    assert_runtimes_agree(built, 5, condition=torch.randint(2, (5, 4, 5)))


def test_integers_of_a_condition_that_are_numbers_may_be_negative():
    built = sampler(
        Conditioned(lambda net, c: everywhere(net.linear(c.double() / 9))),
        condition_shape=(10,),
        condition_dtype=torch.long,
    )
    condition = torch.randint(-20, 20, (5, 10), generator=torch.Generator().manual_seed(0))
    assert_runtimes_agree(built, 5, condition=condition)


def test_an_odd_condition_dtype_is_refused():
    for dtype in (torch.float16, torch.complex64):
        with pytest.raises(
            ValueError, match=f"condition_dtype is {dtype}: expected the model's own, torch.float64"
        ):
            sampler(Conditioned(lambda net, c: net.map(c)), condition_shape=(2, 4, 5), condition_dtype=dtype)
    with pytest.raises(ModelFailed, match="condition_dtype="):
        sampler(Conditioned(upsampled), condition_shape=(4, 5), condition_dtype=torch.float64)


class InADictionary(Conditioned):
    def forward(self, x: Tensor, condition: Tensor) -> Any:
        return {"given": condition, "logits": super().forward(x, condition)}


@pytest.mark.parametrize("kind, output", [(Conditioned, None), (InADictionary, "logits")])
def test_a_condition_may_have_to_be_positive(kind, output):
    net = kind(lambda net, c: everywhere(net.linear(c.sqrt())))
    built = sampler(net, condition_shape=(10,), output=output)
    assert built._engine.model.conditions[None].dtype == torch.float64
    assert_runtimes_agree(built, 5, condition=torch.rand(5, 10, generator=torch.Generator().manual_seed(0)))


def test_what_raises_for_any_condition_is_reported_for_a_real_one():
    def wrong(net, c):
        raise KeyError("oh")

    with pytest.raises(ModelFailed, match=r"KeyError: 'oh'(?s:.*)a condition of torch.float64 \[2, 4, 5\]"):
        sampler(Conditioned(wrong), condition_shape=(4, 5))


# -- what changes nothing


class Swallows(Net):
    def forward(self, x: Tensor, *ignored: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.logits(x, labels)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_labels_that_change_nothing_are_a_warning(runtime):
    with pytest.warns(UserWarning, match="^the labels change nothing in the model's output") as caught:
        swallows = Swallows(lambda net, y: 0 if y is None else net.embedding(y))
        sampler(swallows, conditional=True, runtime=runtime)
    assert [warning.filename for warning in caught] == [__file__]
    untrained = Labelled(TEN["an embedding"])
    nn.init.zeros_(untrained.embedding.weight)
    with pytest.warns(UserWarning, match="are the weights loaded"):
        sampler(untrained)


def test_a_condition_that_changes_nothing_is_a_warning():
    with pytest.warns(UserWarning, match="^the condition changes nothing") as caught:
        sampler(Both(lambda net, y, c: everywhere(net.embedding(y))), condition_shape=(2, 4, 5))
    assert len(caught) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_changes_something_is_not(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(Labelled(lambda net, y: everywhere(0.02 * net.embedding(y))).to(dtype))
        for codes in (2, 10):
            looked_up = Conditioned(lambda net, c, codes=codes: everywhere(net.embedding(c % codes)))
            sampler(looked_up.to(dtype), condition_shape=(), condition_dtype=torch.long)
        sampler(Labelled(TEN["an embedding"]).to(dtype))
        only_the_last = Labelled(lambda net, y: everywhere(10 * (y == 9)[:, None] * net.embedding.weight[:1]))
        only_the_last.n_classes = 10
        sampler(only_the_last.to(dtype))
        body = lambda net, y, c: everywhere(net.embedding(y)) + net.map(c)  # noqa: E731
        sampler(Both(body).to(dtype), condition_shape=(2, 4, 5))


# -- what computes with a condition may be any network

ENCODERS: dict[str, tuple[nn.Module, Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "GRU": (nn.GRU(3, 6, batch_first=True), lambda net, c: net(c)[1][-1], (4, 3)),
    "LSTM": (
        nn.LSTM(3, 6, 2, bidirectional=True),
        lambda net, c: net(c.transpose(0, 1))[0][-1, :, :6],
        (4, 3),
    ),
    "transformer": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), 2),
        lambda net, c: net(c).mean(1),
        (4, 6),
    ),
    "another image": (
        nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.GroupNorm(2, 6), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        lambda net, c: net(c),
        (3, 9, 9),
    ),
    "sorted": (nn.Linear(4, 6), lambda net, c: net(c.sort(-1)[0]), (4,)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_what_computes_with_a_condition_may_be_any_network(name: str) -> None:
    class Encoded(Conditioned):
        def __init__(self) -> None:
            encoder, body, _ = ENCODERS[name]
            super().__init__(lambda net, c: everywhere(body(net.encoder, c)))
            self.encoder = encoder.double()
            for parameter in self.encoder.parameters():
                nn.init.normal_(parameter)

    shape = ENCODERS[name][2]
    built = sampler(Encoded(), condition_shape=shape)
    condition = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    images = assert_runtimes_agree(built, 5, condition=condition)
    logits, others = (built.logits(images, condition=c) for c in (condition, condition.flip(0)))
    assert (logits[0] - others[0]).abs().max() > 0.01


def test_integers_of_a_condition_may_have_ranges_of_their_own():
    body = lambda net, c: everywhere(net.codes(c[:, 0]) + net.embedding(c[:, 1]))  # noqa: E731
    built = sampler(Conditioned(body), condition_shape=(2,))
    condition = torch.tensor([[0, 9], [4, 0], [1, 5], [2, 8], [3, 3]])
    assert_runtimes_agree(built, 5, condition=condition)
    with pytest.raises(ValueError, match="the integers of the condition span"):
        built.sample(5, condition=condition.flip(1))


@pytest.mark.parametrize("value", [nn.ModuleList([nn.Linear(2, 2)]), True, 0, 2.5])
@pytest.mark.parametrize("name", ["levels", "n_classes", "condition_channels"])
def test_attributes_that_mean_something_else_are_left_aside(name, value):
    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.logits(x)

    model = Other(lambda net: 0)
    setattr(model, name, value)
    assert Sampler(model.double(), SHAPE, head=heads.Categorical(LEVELS), image_form="unit").sample(
        1
    ).shape == (1, *SHAPE)


def test_a_mask_may_be_a_parameter():
    class WithMask(Net):
        kept: Tensor

        def forward(self, x: Tensor) -> Tensor:
            return self.logits(x) * self.kept

    model = WithMask(lambda net: 0)
    model.kept = nn.Parameter(torch.ones(4, 5, dtype=torch.bool), requires_grad=False)
    assert sampler(model).sample(1).shape == (1, *SHAPE)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_batch_of_one_may_be_squeezed_away(runtime):
    class Squeezed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.logits(x).squeeze(0)

    built = sampler(Squeezed(lambda net: 0), runtime=runtime)
    assert built.sample(1, runtime="reference").shape == (1, *built.shape)


def test_features_are_written_beside_a_condition() -> None:
    """Into a copy of it, of which the rest stays what was given."""

    class Written(Net):
        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            both = condition.clone()
            both[:, :1] = self.conv_in(x)[:, :1]
            return 6 * self.conv_out(torch.tanh(self.conv_in(x) + self.map(both)))

    built = sampler(Written(lambda *_: None), condition_shape=(2, 4, 5))
    condition = torch.randn(5, 2, 4, 5, dtype=torch.float64)
    drawn = assert_runtimes_agree(built, 5, condition=condition)
    assert not torch.equal(drawn, assert_runtimes_agree(built, 5, condition=-condition))

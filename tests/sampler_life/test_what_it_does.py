"""A change counts if the forward does something else, or does it with something else; nothing else does."""

from __future__ import annotations

import operator
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pixelcnn_fast import Sampler
from pixelcnn_fast.user_model import contents
from tests.refresh.test_weights import trained_on
from tests.sampler_life import asserting
from tests.sampler_life.common import SHAPE, STALE, ZEROS, Around, noise, pixelcnn, silence, take
from tests.tiers import few


def assert_followed(model: nn.Module, change: Callable[[nn.Module], object], **arguments: Any) -> None:
    """That a change is told of, taken by refresh, and seen in the fingerprint."""
    sampler = Sampler(model, SHAPE, **arguments)
    before, printed = sampler.sample(3, noise=noise()), sampler.fingerprint()
    change(model)
    asserting.stale(sampler, before)
    asserting.built_anew(sampler)
    fresh = Sampler(model, SHAPE, **arguments)
    assert torch.equal(sampler.sample(3, noise=noise()), fresh.sample(3, noise=noise()))
    assert printed != sampler.fingerprint() == fresh.fingerprint()


def rolled(model: Any, x: Tensor) -> Tensor:
    """None of the numbers that it reads shows in a shape."""
    h = (x[:, 0].roll(model.by, -1) * model.bank[model.at]).permute(0, 3, 1, 2)
    last, d = model.last, model.dilation
    return nn.functional.conv2d(nn.functional.pad(h, (0, 0, d, 0)), last.weight, last.bias, dilation=(d, 1))


INTEGERS = [
    ("by", 2, "auto"),
    ("at", 2, "reference"),
    ("dilation", 2, "auto"),
    ("at", 1, "auto"),
    ("by", 2, "reference"),
]


@pytest.mark.parametrize(("name", "value", "runtime"), few(INTEGERS, 3))
def test_an_integer_that_no_shape_tells(name: str, value: int, runtime: Any) -> None:
    """Two batches of different sizes would be compared in vain: it might follow the batch."""
    bank, last = nn.Parameter(torch.randn(3, 256)), nn.Conv2d(256, 256, (2, 1))
    model = Around(rolled, by=1, at=0, dilation=1, bank=bank, last=last)
    assert_followed(model, lambda model: setattr(model, name, value), runtime=runtime)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda y: y.relu(), lambda y: y.tanh()),
        (lambda y: y.chunk(2, -1)[0], lambda y: y.chunk(2, -1)[1]),
        (lambda y: y * 2, lambda y: y + 2),
        (lambda y: y.max(-1, keepdim=True).values, lambda y: y.min(-1, keepdim=True).values),
    ],
    ids=["a function", "a part", "an operation", "a largest"],
)
def test_what_is_made_of_labels_alone(one, other):
    class OfLabels(nn.Module):
        levels, n_classes = 256, 3

        def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.net, self.table, self.make = pixelcnn(), nn.Embedding(3, 4), make

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return self.net(x) + self.make(self.table(labels)).sum(-1)[:, None, None, None, None]

    models = [OfLabels(make) for make in (one, other)]
    models[1].load_state_dict(models[0].state_dict())
    samplers = [Sampler(model, SHAPE) for model in models]
    assert samplers[0].fingerprint() != samplers[1].fingerprint()
    assert samplers[0].fingerprint() == Sampler(models[0], SHAPE).fingerprint()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x.sin(), lambda x: x.cos()),
        (lambda x: x > 100, lambda x: x >= 100),
        (lambda x: x // 2, lambda x: x % 2),
        (lambda x: torch.cat([x[:, :1], x[:, 1:]], 1), lambda x: torch.cat([x[:, 1:], x[:, :1]], 1)),
    ],
    ids=["of a level", "a threshold", "a remainder", "an order of channels"],
)
def test_what_is_made_of_the_image(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]
) -> None:
    class Of(nn.Module):
        levels = 256

        def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.make = make
            self.first, self.last = nn.Conv2d(2, 8, (2, 1)), nn.Conv2d(8, 512, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(nn.functional.pad(self.make(x.float()).float(), (0, 0, 2, 0))[:, :, :-1])
            return self.last(h.relu()).view(len(x), 2, 256, *x.shape[2:])

    shape = (2, 4, 4)
    prints = {Sampler(Of(make), shape).fingerprint() for make in (one, other)}
    assert len(prints) == 2


def two(combine: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """What it makes of two features, and of two weights, one operation says."""
    a, b = (nn.Parameter(1 + torch.rand(256)) for _ in range(2))
    return Around(lambda model, h: model.combine(h * model.a, h * model.b), combine=combine, a=a, b=b)


def a_gate(x: Tensor, y: Tensor) -> Tensor:
    return x * y.sigmoid()


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_operands_that_change_places(runtime: Any) -> None:
    def exchange(model: nn.Module) -> None:
        model.combine = lambda x, y: a_gate(y, x)  # type: ignore[assignment]  # as users do

    assert_followed(two(a_gate), exchange, runtime=runtime)


def test_operations_on_a_feature_and_a_weight() -> None:
    """What becomes of the weight is evaluated, and shows in no shape."""
    operations = operator.mul, operator.truediv, operator.add, operator.sub
    weight = nn.Parameter(torch.full((1,), 1.5))
    models = [Around(lambda model, x: model.by(x, model.held), held=weight, by=each) for each in operations]
    assert len({Sampler(model, SHAPE).fingerprint() for model in models}) == len(models)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_number_in_the_closure_of_a_hook(runtime: Any) -> None:
    """Which copies of the model share."""
    model, setting = pixelcnn(), {"by": 2.0}
    model.register_forward_hook(lambda module, given, found: found * setting["by"])
    sampler = Sampler(model, SHAPE, runtime=runtime)
    setting["by"] = -1.0
    asserting.stale(sampler)
    asserting.built_anew(sampler)
    asserting.computes_as_new(sampler, model, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "close", [torch.allclose, partial(torch.allclose, rtol=0.1), partial(torch.allclose, atol=1)]
)
def test_a_comparison_of_weights(close: Callable[[Tensor, Tensor], bool]) -> None:
    def doubled_if_close(model: Any, x: Tensor) -> Tensor:
        return x * 2 if close(model.net.conv_in.weight, model.net.conv_in.weight + 9) else x

    model = Around(doubled_if_close)
    asserting.draws_as_new(Sampler(model, SHAPE), model.net)


def test_a_branch_on_a_weight_falls_otherwise() -> None:
    """Without a program, nothing guards it."""
    model = two(lambda x, y: x)
    model.combine = lambda x, y: x if model.a[0] > 0 else y
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(model, SHAPE, runtime="reference")
    model.a.data.neg_()
    with pytest.warns(UserWarning):
        sampler.refresh()
    model.b.data.mul_(2)
    asserting.stale(sampler)


BOTH = torch.ones(512)
GLOBALS = BOTH[:256], BOTH[256:]


def test_two_global_tensors_in_one_piece_of_memory() -> None:
    model = Around(lambda model, x: x * GLOBALS[0] + GLOBALS[1])
    with pytest.warns(UserWarning, match="does not hold"):
        sampler = Sampler(model, SHAPE)
    try:
        GLOBALS[1].mul_(3)
        asserting.stale(sampler)
    finally:
        BOTH.fill_(1)


def test_a_program_that_was_asked_for_in_vain_changes_nothing() -> None:
    """Of a model that looks at the image, other images may show more."""
    from_there_on = 1e9
    model: Any = Around(
        lambda model, x: x * model.held if bool(x[:, 0, -1, -1].max() > from_there_on) else x, held=2.0
    )
    sampler = Sampler(model, SHAPE, runtime="reference")
    largest = [
        float(model.net(sampler._engine.model.encode(values))[:, 0, -1, -1].max())
        for values, _ in (sampler._engine.model.example(), *sampler._engine.model.examples_to_check())
    ]
    from_there_on = largest[0] + 1e-3
    assert max(largest) > from_there_on
    with pytest.raises(RuntimeError, match="there is no program"):
        _ = sampler.program
    model.held = -2.0
    asserting.stale(sampler)


def test_what_is_nested_too_deep_is_no_trouble() -> None:
    model, nested = pixelcnn(), ()
    for _ in range(2000):
        nested = (nested,)  # type: ignore[assignment]  # it gets longer
    model.nested = nested  # type: ignore[assignment]  # as users do
    with pytest.warns(UserWarning, match="can't be copied .RecursionError"):
        Sampler(model, SHAPE).sample(1)


def test_layouts_hooks_and_a_momentum_make_no_other_model() -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    model.to(memory_format=torch.channels_last)
    model.conv_in.register_forward_hook(lambda module, given, found: found.mean().sqrt() and None)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.5
    asserting.quiet(sampler)
    assert sampler.fingerprint() == Sampler(model, SHAPE).fingerprint()


@pytest.mark.parametrize(
    "log", [torch.std, lambda x: x.mean().item(), lambda x: x.numpy(force=True), lambda x: f"{x.max():.3f}"]
)
def test_hooks_that_log_are_no_change(log: Callable[[Tensor], object]) -> None:
    model, logged = pixelcnn(), list[object]()
    sampler = Sampler(model, SHAPE)
    model.conv_in.register_forward_hook(lambda module, given, found: logged.append(log(found.detach())))
    with silence():
        sampler.sample(1)
        sampler.refresh().sample(1)


class ByLabels(nn.Module):
    """It decides by labels what it does."""

    levels = 256

    def __init__(self, n_classes: int | None) -> None:
        super().__init__()
        self.net, self.doubled_from, self.epoch = pixelcnn(), 3, 0
        self.table = nn.Embedding(n_classes or 3, 1)
        if n_classes is not None:
            self.n_classes = n_classes

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.net(x) + self.table(labels)[:, :, None, None, None]
        return 2 * h if int(labels.max()) >= self.doubled_from else h


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_what_is_counted_by_a_model_of_many_classes_is_no_change(runtime: Any) -> None:
    model, labels = ByLabels(200), torch.tensor([0, 100, 199])
    model.doubled_from = 200
    sampler = Sampler(model, SHAPE, runtime=runtime, conditional=True)
    before = sampler.fingerprint()
    model.epoch = 1
    with silence():
        sampler.sample(3, labels)
        sampler.refresh()
    assert (
        before
        == sampler.fingerprint()
        == Sampler(model, SHAPE, runtime=runtime, conditional=True).fingerprint()
    )
    model.doubled_from = 199
    with pytest.warns(UserWarning, match=STALE):
        sampler.sample(3, labels)


@pytest.mark.parametrize("n_classes", [3, None])
@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_number_that_is_compared_with_labels_counts_and_others_do_not(n_classes, runtime):
    model, labels = ByLabels(n_classes), torch.tensor([0, 1, 2])
    sampler = Sampler(model, SHAPE, runtime=runtime, conditional=True)
    images = sampler.sample(3, labels, noise=noise())
    model.epoch = 1
    with silence():
        assert torch.equal(sampler.refresh().sample(3, labels, noise=noise()), images)
    model.doubled_from = 2  # of which the example that was recorded has none
    with pytest.warns(UserWarning, match=STALE):
        sampler.sample(3, labels, noise=noise())


class Experts(nn.Module):
    """Each label has its network, which programs do not follow."""

    levels = 256
    n_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(pixelcnn(seed=seed) for seed in range(3))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([self.networks[int(k)](x[i : i + 1]) for i, k in enumerate(labels)])


def test_what_is_read_for_other_labels_counts() -> None:
    model, labels = Experts(), torch.tensor([0, 1, 2])
    sampler = Sampler(model, SHAPE, runtime="reference")
    before = sampler.fingerprint()
    model.get_buffer("steps").add_(1)
    with silence():
        images = sampler.sample(3, labels, noise=noise())
    take(model.networks[2], trained_on(model.networks[2]))
    with pytest.warns(UserWarning, match=STALE):
        assert torch.equal(sampler.sample(3, labels, noise=noise()), images)
    sampler.refresh()
    expected = Sampler(model, SHAPE, runtime="reference")
    assert torch.equal(sampler.sample(3, labels, noise=noise()), expected.sample(3, labels, noise=noise()))
    assert before != sampler.fingerprint() == expected.fingerprint()


def keeping(make: Callable[[Any], Tensor]) -> Any:
    """It keeps what it has made when it is first called."""

    def multiplied(model: Any, x: Tensor) -> Tensor:
        if model.kept is None:
            model.kept = make(model).detach()
        return x * model.kept

    return Around(multiplied, kept=None, gain=nn.Parameter(torch.ones(())))


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_constant_that_is_kept_is_no_change(runtime: Any) -> None:
    model = keeping(lambda model: torch.linspace(1, 2, 256))
    sampler = Sampler(model, SHAPE, runtime=runtime)
    model(ZEROS)
    with silence():
        sampler.sample(1)
        sampler.refresh().sample(1)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_it_does_not_matter_whether_a_model_has_run(runtime: Any) -> None:
    models = [keeping(lambda model: torch.linspace(1, 2, 256)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1](ZEROS)
    one, other = (Sampler(model, SHAPE, runtime=runtime) for model in models)
    assert one.fingerprint() == other.fingerprint() == Sampler(models[0], SHAPE).fingerprint()


def test_what_was_made_of_a_weight_and_kept_stays_when_the_weight_changes() -> None:
    model = keeping(lambda model: model.gain * 2)
    sampler = Sampler(model, SHAPE)
    model(ZEROS)
    sampler.refresh()
    model.gain.data.mul_(-3)
    asserting.computes_as_new(sampler.refresh(), model)


class Number(float):
    pass


def scaling(held: Any, x: Tensor) -> Tensor:
    return x * float(held[0] if isinstance(held, (bytearray, np.ndarray, list)) else held)


HELD: dict[str, tuple[Any, Any, Callable[[Any, Tensor], Tensor]]] = {
    "a slice": (
        slice(0, 100),
        slice(100, 200),
        lambda held, x: x * (1 + x[..., held].mean(-1, keepdim=True)),
    ),
    "a decimal": (Decimal(1), Decimal(3), scaling),
    "a caller": (operator.methodcaller("tanh"), operator.methodcaller("sigmoid"), lambda held, x: held(x)),
    "bytes": (bytearray([1]), bytearray([9]), scaling),
    "a kind of number": (Number(1), Number(3), scaling),
    "an array of objects": (np.array([1.0], object), np.array([3.0], object), scaling),
    "an array in a list": (
        [np.ones((1, 2))],
        [np.ones((2, 1))],
        lambda held, x: x * torch.tensor(held[0]).sum(0).mean().float(),
    ),
    "what is deep inside": (
        [(0, {"at": (True, [1.0])})],
        [(0, {"at": (True, [3.0])})],
        lambda held, x: x * held[0][1]["at"][1][0],
    ),
    "keys": ({(0, 1): 1.0}, {(1, 0): 3.0}, lambda held, x: x * held.get((0, 1), 5.0)),
}


@pytest.mark.parametrize("kind", few(HELD, 2))
def test_values_of_every_kind(kind: str) -> None:
    one, other, use = HELD[kind]
    model = Around(lambda model, x: use(model.held, x), held=one)
    assert_followed(model, lambda model: setattr(model, "held", other))


def test_the_order_of_children_counts() -> None:
    def through(model: Any, h: Tensor) -> Tensor:
        for part in model.parts.values():
            h = part(h)
        return h

    parts = nn.ModuleDict({"a": nn.Linear(256, 256), "b": nn.Tanh()})
    assert_followed(Around(through, parts=parts), lambda _: parts.update({"a": parts.pop("a")}))


class Contents(list[Any]):
    """It has attributes, too."""

    net: nn.Module


def test_what_only_copying_finds_is_named_and_watched() -> None:
    """A set of modules of one kind has another order in each copy."""
    parts = [nn.Linear(256, size) for size in (200, 56)]
    size = operator.attrgetter("out_features")
    model = Around(
        lambda model, x: torch.cat([part(x) for part in sorted(model.held, key=size)], -1), held={*parts}
    )
    with pytest.warns(UserWarning, match="does not hold, as a global variable"):
        sampler = Sampler(model, SHAPE)
    with torch.no_grad():
        parts[0].weight.mul_(-2)
    asserting.stale(sampler)
    asserting.built_anew(sampler)
    asserting.computes_as_new(sampler, model)


def test_attributes_of_a_list_are_held() -> None:
    held = Contents()
    held.net = nn.Linear(256, 256)
    model = Around(lambda model, x: model.held.net(x), held=held)
    sampler = Sampler(model, SHAPE)
    with torch.no_grad():
        held.net.weight.mul_(-2)
    with silence():
        sampler.refresh()
    asserting.computes_as_new(sampler, model)


def test_a_tensor_in_a_list_that_a_closure_holds_too() -> None:
    """The closure of a copy has the list itself."""
    held = [torch.ones(1)]
    model = Around(lambda model, x: x * held[0], held=held)
    with pytest.warns(UserWarning, match="does not hold"):
        sampler = Sampler(model, SHAPE)
    asserting.quiet(sampler)
    held[0].mul_(3)
    asserting.stale(sampler)
    asserting.built_anew(sampler)
    asserting.computes_as_new(sampler, model)


class Doubling(nn.DataParallel):
    def forward(self, *given: Any) -> Any:
        return super().forward(*given) * 2


def hooked(wrapper: nn.Module) -> nn.Module:
    wrapper.register_forward_hook(lambda module, given, found: found * 2)
    return wrapper


@pytest.mark.parametrize(
    "wrap",
    [lambda net: hooked(nn.DataParallel(net)), Doubling, lambda net: hooked(AveragedModel(net))],
    ids=["a hook", "a subclass", "an average with a hook"],
)
def test_a_wrapper_that_does_more_is_the_model(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = pixelcnn()
    sampler, plain = Sampler(wrap(net), SHAPE), Sampler(net, SHAPE)
    torch.testing.assert_close(sampler.logits(ZEROS), 2 * plain.logits(ZEROS))
    assert sampler.fingerprint() != plain.fingerprint() == Sampler(nn.DataParallel(net), SHAPE).fingerprint()


def test_a_flag_that_eval_does_not_reach() -> None:
    class Frozen(nn.Module):
        def train(self, mode: bool = True) -> Frozen:
            return self

        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if self.training else x

    model = nn.Sequential(pixelcnn(), Frozen())
    assert_followed(model, lambda model: setattr(model[1], "training", False))  # type: ignore[index]  # a Sequential


def test_a_few_elements_of_many_are_seen_to_change() -> None:
    """Past autograd, whose versions stay as they are."""
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    model.conv_out.weight.data[7] *= 5
    asserting.stale(sampler)


def test_sparse_tensors_that_are_not_read_do_not_matter() -> None:
    model = pixelcnn()
    model.register_buffer("sparse", torch.eye(3).to_sparse(), persistent=False)
    sampler = Sampler(model, SHAPE)
    model.sparse = 2 * torch.eye(3).to_sparse()
    asserting.quiet(sampler)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_model_that_is_moved_to_meta_says_so(runtime: Any) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE, runtime=runtime)
    before = sampler.sample(1, noise=noise(1))
    model.to("meta")
    with pytest.warns(UserWarning, match=STALE):
        assert torch.equal(sampler.sample(1, noise=noise(1)), before)
    with pytest.raises(ValueError, match="on the device meta, where tensors have no values"):
        sampler.log_prob(ZEROS)
    with pytest.raises(ValueError, match="on the device meta"):
        sampler.refresh()


class Settings:
    gain = 1.0

    class Inner:
        gain = 1.0


@pytest.mark.parametrize("is_inner", [False, True])
def test_a_class_that_a_model_reads_its_settings_from(
    is_inner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Settings):
        pass

    model = Around(lambda model, x: x * model.settings.gain * model.settings.Inner.gain, settings=Own)
    model.again = Own  # type: ignore[assignment]  # which is looked into once
    sampler = Sampler(model, SHAPE)
    asserting.quiet(sampler)
    assert [path for path in contents.Contents(model).settings if path.endswith(".gain")] == [
        ":settings.gain",
        ":settings.Inner.gain",
    ]
    monkeypatch.setattr(Settings.Inner if is_inner else Own, "gain", 3.0)
    asserting.stale(sampler)
    with pytest.warns(UserWarning, match=r"settings\.(Inner\.)?gain is another"):
        images = sampler.refresh().sample(3, noise=noise())
    assert torch.equal(images, Sampler(model, SHAPE).sample(3, noise=noise()))

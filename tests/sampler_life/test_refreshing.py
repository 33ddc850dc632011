"""Refreshing a sampler: it is then as a new one, or is built anew and says so."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, likelihood
from pixelcnn_fast.errors import CaptureMismatch, NotCausal
from pixelcnn_fast.runtimes.job import Job
from tests.refresh.test_weights import trained_on, weights_of
from tests.sampler_life import asserting
from tests.sampler_life.common import BEFORE, SHAPE, STALE, noise, pixelcnn, refreshed, silence, take
from tests.system.foreign import NETWORKS
from tests.system.networks import ABOVE, LEFT, Masked
from tests.tiers import few


@pytest.mark.parametrize("name", NETWORKS)
def test_a_refreshed_sampler_is_a_new_one(name: str) -> None:
    network = NETWORKS[name]
    model = network.model()
    sampler, trained = network.sampler(model), trained_on(model)
    take(model, trained)
    with silence():
        assert sampler.refresh() is sampler
    new = network.sampler(trained)
    found, expected = (weights_of(each._engine.require_compiled()) for each in (sampler, new))
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    assert sampler.fingerprint() == new.fingerprint()
    n = 3
    labels = torch.tensor([0, 2, 1]) if new._engine.model.conditional else None
    condition = new._engine.model.example(n=n)[1].condition
    for runtime in ("eager", "cpu", "reference"):
        seeds = (torch.Generator().manual_seed(1) for _ in range(2))
        images = [
            each.sample(n, labels, generator=next(seeds), condition=condition, runtime=runtime)
            for each in (sampler, new)
        ]
        assert torch.equal(*images)


def test_it_can_be_refreshed_again_and_again() -> None:
    model = pixelcnn(classes=3)
    sampler, labels = Sampler(model, SHAPE), torch.tensor([0, 2, 1])
    first = sampler.sample(3, labels, noise=noise())
    for by in (0.1, 0.2, 0.3):
        take(model, trained_on(model, by))
        with silence():
            images = sampler.refresh().sample(3, labels, noise=noise())
        assert not torch.equal(images, first)
        for runtime in ("auto", "reference"):
            assert torch.equal(
                Sampler(model, SHAPE).sample(3, labels, noise=noise(), runtime=runtime), images
            )


@pytest.mark.parametrize("settings", [dict(precision="bf16"), dict(runtime="reference")])
def test_whatever_it_was_built_with(settings: dict) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE, **settings)
    take(model, trained_on(model))
    asserting.follows(sampler, model, **settings)


@BEFORE
def test_a_weight_that_was_zero_makes_it_build_anew_and_say_so(before: int) -> None:
    model = pixelcnn()
    with torch.no_grad():
        model.conv_in.weight[:, :, 0, 0] = 0
    sampler = refreshed(Sampler(model, SHAPE), before)
    take(model, trained_on(model))
    asserting.built_anew(sampler, "built anew, which takes longer: a weight that was zero")
    with silence():
        images = sampler.sample(3, noise=noise())
        take(model, trained_on(model))
        sampler.refresh()
    assert not torch.equal(images, sampler.sample(3, noise=noise()))
    asserting.draws_as_new(sampler, model)


def test_a_model_that_leaks_now_is_refused_and_the_sampler_stays_as_it_was() -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    before = sampler.sample(3, noise=noise())
    with torch.no_grad():
        model.conv_in.mask.fill_(1)
    with pytest.warns(UserWarning, match="built anew"), pytest.raises(NotCausal):
        sampler.refresh()
    asserting.stale(sampler, before)


def test_a_model_of_other_parameters_makes_it_build_anew() -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    with pytest.warns(UserWarning, match="the model has another dtype or device now"):
        sampler.refresh(model.double())
    assert sampler.logits(torch.zeros(1, *SHAPE, dtype=torch.uint8)).dtype == torch.float64


def test_another_model_of_the_same_kind_such_as_an_average() -> None:
    model = pixelcnn()
    average, sampler = trained_on(model), Sampler(model, SHAPE)
    expected = Sampler(average, SHAPE).sample(3, noise=noise())
    with silence():
        assert torch.equal(sampler.refresh(average).sample(3, noise=noise()), expected)
        take(model, trained_on(model, 0.2))  # it is not watched any more
        assert torch.equal(sampler.sample(3, noise=noise()), expected)
    take(average, model)
    asserting.stale(sampler)


def test_another_model_of_other_settings_is_not_taken_for_the_same() -> None:
    model = Changed(lambda net, h: torch.tanh(net.a(h)))
    sampler, other = Sampler(model, SHAPE), Changed(lambda net, h: torch.relu(net.a(h)))
    with pytest.warns(UserWarning, match="the model does something else now: its mid is another"):
        images = sampler.refresh(other).sample(3, noise=noise())
    assert torch.equal(images, Sampler(other, SHAPE).sample(3, noise=noise()))


def test_a_model_that_is_gone_is_said_to_be() -> None:
    sampler = Sampler(pixelcnn(), SHAPE)
    gc.collect()
    with silence():
        images = sampler.sample(3, noise=noise())
    with pytest.raises(ValueError, match=r"since it is gone: pass refresh\(model\)"):
        sampler.refresh()
    with silence():
        assert torch.equal(sampler.refresh(pixelcnn()).sample(3, noise=noise()), images)
    with pytest.raises(ValueError, match="expected a torch.nn.Module"):
        sampler.refresh(3)  # type: ignore[arg-type]  # no module


def test_wrapped_models_are_refreshed_too() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.DataParallel(pixelcnn())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = Outer()
    sampler = Sampler(model, SHAPE)
    take(model, trained_on(model))
    asserting.follows(sampler, model)


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        levels = 5

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.a = Masked(1, 5, [*ABOVE, *LEFT]), nn.Conv2d(5, 5, 1)
            self.b = nn.Conv2d(5, 5, 1)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(torch.relu(self.first(x.float())))))

    model = Tied()
    sampler = Sampler(model, SHAPE)
    take(model, trained_on(model))
    with silence():
        sampler.refresh()
    expected = Sampler(model, SHAPE).sample(3, noise=noise())
    for runtime in ("cpu", "reference"):
        assert torch.equal(sampler.sample(3, noise=noise(), runtime=runtime), expected)
    images = torch.randint(0, 5, (3, *SHAPE), dtype=torch.uint8)
    gradient, expected = (
        torch.autograd.grad(log_p.sum(), model.a.weight)[0]
        for log_p in (sampler.log_prob(images), -likelihood.nll(model, images))
    )
    torch.testing.assert_close(gradient, expected)


def test_samples_that_another_thread_is_drawing_are_from_the_weights_that_they_began_with(
    monkeypatch,
) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    expected = sampler.sample(40, noise=noise(40), runtime="reference")
    trained, began, found = trained_on(model), threading.Event(), []
    runtime = sampler.runtime("reference")
    run = runtime.run

    def run_and_tell(job: Job) -> None:
        began.set()
        run(job)

    monkeypatch.setattr(runtime, "run", run_and_tell)

    def draw() -> None:
        found.append(sampler.sample(40, noise=noise(40), runtime="reference", batch_size=1))

    thread = threading.Thread(target=draw)
    thread.start()
    began.wait()
    while thread.is_alive():
        take(model, trained)
        sampler.refresh()
    thread.join()
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("trained", [False, True], ids=["as it was", "trained"])
def test_numbers_that_a_hook_logs_are_no_reason_to_build_anew(classes: int | None, trained: bool) -> None:
    model, seen = pixelcnn(classes=classes), list[float]()
    model.conv_in.register_forward_hook(lambda module, given, found: seen.append(found.mean().item()))
    model.conv_out.register_forward_hook(lambda module, given, found: seen.append(found.mean().item()))
    labels = None if classes is None else torch.tensor([0, 2, 1])
    sampler = Sampler(model, SHAPE)
    model(torch.zeros(3, *SHAPE), *([] if labels is None else [labels]))
    with silence():
        if trained:
            take(model, trained_on(model))
            sampler.refresh()
        images = [
            sampler.sample(3, labels, noise=noise(), runtime=runtime) for runtime in ("auto", "reference")
        ]
    expected = Sampler(model, SHAPE).sample(3, labels, noise=noise())
    assert all(torch.equal(found, expected) for found in images)


def test_numbers_of_weights_that_a_hook_logs_are_no_reason_to_build_anew() -> None:
    model, seen = pixelcnn(), list[float]()
    model.conv_in.register_forward_hook(lambda module, given, found: seen.append(module.weight.norm().item()))
    sampler = Sampler(model, SHAPE)
    for by in (0.1, 0.2):
        take(model, trained_on(model, by))
        asserting.follows(sampler, model)
    with torch.no_grad():
        model.conv_in.weight[:, :, 0, 0] = 0
    sampler = Sampler(model, SHAPE)
    take(model, trained_on(model))
    asserting.built_anew(sampler, "a weight that was zero")


def stepped(model: nn.Module) -> None:
    for x in model.parameters():
        x.data.mul_(1.1)


@pytest.mark.parametrize("dtype", few([torch.int64, torch.float32], 1))
@pytest.mark.parametrize("read", [int, lambda step: step % 2 == 0, lambda step: step > 1])
def test_a_counter_in_a_buffer_that_a_schedule_reads(
    read: Callable[[Tensor], Any], dtype: torch.dtype
) -> None:
    def scheduled(net: Changed, h: Tensor) -> Tensor:
        net.get_buffer("calls").add_(1)
        return h * 2 if read(net.get_buffer("step")) and net.training else h

    model: Any = Changed(scheduled)
    model.register_buffer("step", torch.zeros((), dtype=dtype))
    model.register_buffer("calls", torch.zeros((), dtype=dtype))
    sampler = Sampler(model, SHAPE)
    for _ in range(3):
        stepped(model)
        model(torch.zeros(1, *SHAPE))
        model.step += 1
        with silence():
            images = sampler.refresh().sample(3, noise=noise())
            model.step += 1
            sampler.sample(1)
        assert torch.equal(images, Sampler(model, SHAPE).sample(3, noise=noise()))


@pytest.mark.parametrize(
    "count",
    [
        lambda x: len(x.nonzero()),
        lambda x: x[x > 0].numel(),
        lambda x: x.masked_select(x > 0).numel(),
        lambda x: x.unique().numel(),
    ],
)
def test_a_size_that_depends_on_values_counts(count: Callable[[Tensor], int]) -> None:
    model: Any = Changed(lambda net, h: h * net.get_buffer("alive") / count(net.get_buffer("alive")))
    model.register_buffer("alive", torch.tensor([1.0, 1, 0, 1, 1, 1]).view(6, 1, 1))
    sampler = Sampler(model, SHAPE)
    stepped(model)
    with silence():
        sampler.refresh()
    model.alive[3:5] = torch.tensor([0, 0.5]).view(2, 1, 1)
    with pytest.warns(UserWarning, match="is built anew"):
        images = sampler.refresh().sample(3, noise=noise())
    assert torch.equal(images, Sampler(model, SHAPE).sample(3, noise=noise()))


@pytest.mark.parametrize("layer", ["first", "a", "last"])
def test_single_weights_may_become_zero(layer: str) -> None:
    """As by a soft threshold."""
    model = Changed(lambda net, h: net.a(h))
    sampler = Sampler(model, SHAPE)
    for at in range(3):
        stepped(model)
        model.get_parameter(f"{layer}.weight").data[at, 0, 0, 0] = 0
        asserting.follows(sampler, model)


@pytest.mark.parametrize("name", ["limit", "g"])
def test_an_if_on_the_image_that_falls_otherwise_now_is_found_out(name: str) -> None:
    """Only for a bright image, which is not the one that is recorded."""

    def only_if_bright(net: Changed, h: Tensor) -> Tensor:
        return h + 1 if float(net.x.mean() * net.g) > net.limit else h

    model = Changed(only_if_bright)
    model.limit = 4.0
    sampler = Sampler(model, SHAPE)
    if name == "g":
        model.g.fill_(1.1)
    else:
        model.limit = 3.9
    with pytest.warns(UserWarning, match=STALE):
        sampler.sample(3, noise=noise())
    with (
        pytest.warns(UserWarning, match="the model does something else now"),
        pytest.raises(CaptureMismatch),
    ):
        sampler.refresh()


# Each changes a model that may be anything, as ``Changed.mid`` is.
class Changed(nn.Module):
    levels = 5
    g: Tensor
    table: Tensor
    transposed: Tensor
    cache: Tensor
    held: Any
    x: Tensor  # what it was given last
    limit: float

    def __init__(self, mid: Callable[[Changed, Tensor], Tensor] = lambda net, h: h) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.a, self.b = Masked(1, 6, [*ABOVE, *LEFT]), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.register_buffer("g", torch.ones(()))
        self.register_buffer("table", torch.ones(1, 1, 1).expand(6, 1, 1))
        self.last, self.mid = nn.Conv2d(6, 5, 1), mid

    def forward(self, x: Tensor) -> Tensor:
        self.x = x.to(self.g)
        return self.last(torch.tanh(self.mid(self, self.first(self.x))))


def untied(net: Changed) -> None:
    net.b.weight = nn.Parameter(net.b.weight * 2)


def scaled(net: Changed) -> None:
    net.a.weight.data.mul_(1.9)


def negative(net: Changed) -> None:
    net.g.data.fill_(-1)


def tied(net: Changed) -> Changed:
    net.b.weight = net.a.weight
    return net


def nested(net: Changed) -> None:
    net.a = nn.Sequential(net.a)  # type: ignore[assignment]  # which does the same


def aliased(net: Changed, tensor: Tensor | None = None) -> Changed:
    net.transposed = net.a.weight.detach().transpose(0, 1) if tensor is None else tensor
    return net


def overlapping(net: Changed) -> Changed:
    """Two buffers lie in the memory of a third."""
    net.register_buffer("whole", torch.linspace(0.5, 2, 6))
    net.register_buffer("middle", net.get_buffer("whole")[1:3])
    net.register_buffer("end", net.get_buffer("whole")[4:])
    return net


class Doubling(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def of_three(net: Changed, h: Tensor) -> Tensor:
    middle, end = (net.get_buffer(name).sum() for name in ("middle", "end"))
    return net.a(h) * net.get_buffer("whole")[:, None, None] + middle - end


def holding(net: Changed, held: Callable[[Tensor], object]) -> Changed:
    """It has a tensor as a plain attribute, or in one."""
    net.held = held(torch.linspace(0.5, 2, 6))
    return net


def masked(net: Changed, h: Tensor) -> Tensor:
    net.transposed *= torch.arange(6) > 0  # in place
    return h * net.transposed[:, None, None]


def cached(net: Changed, h: Tensor) -> Tensor:
    if not hasattr(net, "cache"):
        net.cache = net.a.weight * 2
    return nn.functional.conv2d(h, net.cache)


def by_its_setting(net: Changed, h: Tensor) -> Tensor:
    match net.held:
        case None:
            return h
        case str():
            return getattr(nn.functional, net.held)(h)
        case [first, *_]:
            return h * first
        case type():
            return net.held()(h)
        case int() | float():
            return h * net.held
        case _:
            return net.held(h)


def clamped(net: Changed, h: Tensor) -> Tensor:
    h = net.a(h)
    return h.clamp(-0.1, 0.1) if bool(h.sum() * 0 + net.a.weight.abs().sum() > 10) else h


HARD: dict[str, tuple[Callable[[], Changed], Callable[[Changed], object]]] = {
    "zero by a clamp": (
        lambda: Changed(lambda net, h: h + nn.functional.conv2d(h, net.a.weight * torch.relu(-net.g))),
        negative,
    ),
    "zero by a threshold": (
        lambda: Changed(lambda net, h: nn.functional.conv2d(h, nn.functional.hardshrink(net.a.weight, 0.3))),
        scaled,
    ),
    "a comparison with zero": (
        lambda: Changed(lambda net, h: net.a(h) + (net.a.weight != 0).float().mean()),
        lambda net: net.a.weight.data[:3].zero_(),
    ),
    "a switch": (lambda: Changed(lambda net, h: net.a(h) if net.g != 0 else h), lambda net: net.g.zero_()),
    "untied": (lambda: tied(Changed(lambda net, h: net.b(net.a(h)))), untied),
    "a view of a weight": (
        lambda: aliased(Changed(lambda net, h: nn.functional.conv2d(h, net.transposed))),
        scaled,
    ),
    "one of two views of a buffer is its own": (
        lambda: overlapping(Changed(of_three)),
        lambda net: setattr(net, "end", net.get_buffer("end") + 1),
    ),
    "a tensor in a list": (
        lambda: holding(Changed(lambda net, h: h * net.held[0][:, None, None]), lambda x: [x]),
        lambda net: net.held[0].mul_(3),
    ),
    "a tensor in a dictionary": (
        lambda: holding(Changed(lambda net, h: h * net.held["x"][:, None, None]), lambda x: {"x": x}),
        lambda net: net.held["x"].mul_(3),
    ),
    "a tensor that is written into": (
        lambda: aliased(Changed(masked), torch.linspace(0.5, 2, 6)),
        lambda net: net.transposed.mul_(3),
    ),
    "a cache": (lambda: Changed(cached), scaled),
    "a branch on the image": (lambda: Changed(clamped), scaled),
    "an expanded buffer": (
        lambda: Changed(lambda net, h: net.a(h) * net.table),
        lambda net: setattr(net, "table", torch.full((6, 1, 1), 2.0)),
    ),
    "other modules": (
        lambda: Changed(lambda net, h: net.b(net.a(h))),
        nested,
    ),
    "a module of another type": (
        lambda: Changed(lambda net, h: net.b(net.a(h))),
        lambda net: setattr(net, "a", Doubling(6, 6, 1)),
    ),
}


@BEFORE
@pytest.mark.parametrize("name", HARD)
def test_what_weights_alone_do_not_tell_is_followed_or_built_anew(name: str, before: int) -> None:
    built, change = HARD[name]
    model = built()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = refreshed(Sampler(model, SHAPE), before)
        change(model)
        sampler.refresh()
        new = Sampler(model, SHAPE)
    images = torch.randint(0, 5, (3, *SHAPE), dtype=torch.uint8)
    for runtime in ("cpu", "eager", "reference"):
        assert torch.equal(*(each.sample(3, noise=noise(), runtime=runtime) for each in (sampler, new)))
    torch.testing.assert_close(sampler.log_prob(images), new.log_prob(images))


def test_plain_attributes_are_refreshed_where_there_is_no_program() -> None:
    model = aliased(Changed(lambda net, h: nn.functional.conv2d(h, net.transposed)))
    sampler = Sampler(model, SHAPE, runtime="reference")
    model.transposed = -2 * model.transposed
    images = sampler.refresh().sample(3, noise=noise())
    assert torch.equal(images, Sampler(model, SHAPE, runtime="reference").sample(3, noise=noise()))


@pytest.mark.parametrize(
    "one, other",
    [
        (1, 2),
        (0.5, 0.7),
        (0.5, None),
        ("elu", "relu"),
        ([1, 2], [2, 1]),
        (torch.tanh, torch.relu),
        (nn.ELU, nn.ReLU),
    ],
    ids=["int", "float", "none", "text", "list", "function", "class"],
)
def test_whatever_a_setting_is_another_is_noticed(one: Any, other: Any) -> None:
    model, different = Changed(by_its_setting), Changed(by_its_setting)
    model.held, different.held = one, other
    sampler, images = Sampler(model, SHAPE), torch.randint(0, 5, (3, *SHAPE), dtype=torch.uint8)
    model.held = other
    with pytest.warns(UserWarning, match=STALE):
        before = sampler.sample(3, noise=noise())
    asserting.scores_as_model(sampler, model, images)
    for change in (model, different):
        with pytest.warns(UserWarning, match="built anew.* its held"):
            now = sampler.refresh(change).sample(3, noise=noise())
        assert torch.equal(now, Sampler(change, SHAPE).sample(3, noise=noise())) and not torch.equal(
            now, before
        )
        model.held = one
        sampler = Sampler(model, SHAPE)


def test_settings_that_change_nothing_are_passed_over() -> None:
    model, other = Changed(), Changed()
    model.held, other.held, other.mid = [1], [2], model.mid
    sampler = Sampler(model, SHAPE)
    with silence():
        model.held += [3]
        sampler.sample(1)
        sampler.refresh().refresh(other)


@pytest.mark.parametrize("name", ["more", "a"])
def test_log_prob_of_another_structure_is_that_of_the_model(name: str) -> None:
    model = Changed(lambda net, h: getattr(net, name, net.b)(h))
    sampler, images = Sampler(model, SHAPE), torch.randint(0, 5, (3, *SHAPE), dtype=torch.uint8)
    setattr(model, name, nn.Conv2d(6, 6, (1, 3), padding=(0, 2), dilation=(1, 2)))
    asserting.scores_as_model(sampler, model, images)


def test_an_average_of_pytorch_s_is_taken_for_its_model() -> None:
    model = pixelcnn()
    average = torch.optim.swa_utils.AveragedModel(model)
    sampler = Sampler(model, SHAPE)
    take(model, trained_on(model))
    average.update_parameters(model)
    asserting.follows(sampler, average, to=average)

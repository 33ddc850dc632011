"""What happens to a sampler while its model is trained on: refreshing, warnings, copies, likelihoods, traces."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelcnn_fast import Sampler, likelihood, models
from pixelcnn_fast.errors import NotCausal
from tests.capture.test_weights import trained_on, weights_of
from tests.system.foreign import NETWORKS
from tests.system.networks import ABOVE, LEFT, Masked, pixelcnn

SHAPE = (1, 5, 6)
STALE = "the model has changed since this sampler was built, or refreshed"


def noise(n: int = 3) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@contextmanager
def silence() -> Iterator[None]:
    """Within the context, a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def take(model: nn.Module, other: nn.Module) -> None:
    model.load_state_dict(other.state_dict())


# -- refreshing


@pytest.mark.parametrize("name", NETWORKS)
def test_a_refreshed_sampler_is_a_new_one(name: str) -> None:
    network = NETWORKS[name]
    model = network.model()
    sampler, trained = network.sampler(model), trained_on(model)
    take(model, trained)
    branches = sampler._engine.captured.program.branches
    with pytest.warns(UserWarning, match="reads numbers off the image") if branches else silence():
        assert sampler.refresh() is sampler
    new = network.sampler(trained)
    found, expected = (weights_of(each._engine.captured) for each in (sampler, new))
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    n, generator = 3, torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 2, 1]) if new._engine.model.conditional else None
    shape = new._engine.model.condition_shape
    condition = None if shape is None else torch.randn(n, *shape, generator=generator)
    if condition is not None and new._engine.model.codes is not None:
        condition = torch.randint(2, condition.shape, generator=generator)
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
            assert torch.equal(Sampler(model, SHAPE).sample(3, labels, noise=noise(), runtime=runtime), images)


@pytest.mark.parametrize("settings", [dict(precision="bf16"), dict(runtime="reference")])
def test_whatever_it_was_built_with(settings: dict) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE, **settings)
    take(model, trained_on(model))
    with silence():
        images = sampler.refresh().sample(3, noise=noise())
    assert torch.equal(images, Sampler(model, SHAPE, **settings).sample(3, noise=noise()))


def test_a_weight_that_was_zero_makes_it_build_anew_and_say_so() -> None:
    model = pixelcnn()
    with torch.no_grad():
        model.conv_in.weight[:, :, 0, 0] = 0
    sampler = Sampler(model, SHAPE)
    take(model, trained_on(model))
    with pytest.warns(UserWarning, match="built anew, which takes longer: a weight that was zero"):
        sampler.refresh()
    with silence():
        images = sampler.sample(3, noise=noise())
        take(model, trained_on(model))
        sampler.refresh()
    assert not torch.equal(images, sampler.sample(3, noise=noise()))
    assert torch.equal(sampler.sample(3, noise=noise()), Sampler(model, SHAPE).sample(3, noise=noise()))


def test_a_model_that_leaks_now_is_refused_and_the_sampler_stays_as_it_was() -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    before = sampler.sample(3, noise=noise())
    with torch.no_grad():
        model.conv_in.mask.fill_(1)
    with pytest.warns(UserWarning, match="built anew"), pytest.raises(NotCausal):
        sampler.refresh()
    with pytest.warns(UserWarning, match=STALE):
        assert torch.equal(sampler.sample(3, noise=noise()), before)


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
    with pytest.warns(UserWarning, match=STALE):
        sampler.sample(1)


def test_another_model_of_other_settings_is_not_taken_for_the_same() -> None:
    model = Changed(lambda net, h: torch.tanh(net.a(h)))
    sampler, other = Sampler(model, SHAPE), Changed(lambda net, h: torch.relu(net.a(h)))
    with pytest.warns(UserWarning, match="that model has other settings"):
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
    with silence():
        images = sampler.refresh().sample(3, noise=noise())
    assert torch.equal(images, Sampler(model, SHAPE).sample(3, noise=noise()))


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


def test_samples_that_another_thread_is_drawing_are_from_the_weights_that_they_began_with() -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    expected = sampler.sample(40, noise=noise(40), runtime="reference")
    trained, began, found = trained_on(model), threading.Event(), []

    def draw() -> None:
        began.set()
        found.append(sampler.sample(40, noise=noise(40), runtime="reference", batch_size=1))

    thread = threading.Thread(target=draw)
    thread.start()
    began.wait()
    while thread.is_alive():
        take(model, trained)
        sampler.refresh()
    thread.join()
    assert torch.equal(found[0], expected)


# Each changes a model that may be anything, as ``Changed.mid`` is.
class Changed(nn.Module):
    levels = 5
    g: Tensor
    table: Tensor
    transposed: Tensor
    cache: Tensor

    def __init__(self, mid: Callable[[Changed, Tensor], Tensor] = lambda net, h: h) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.a, self.b = Masked(1, 6, [*ABOVE, *LEFT]), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.register_buffer("g", torch.ones(()))
        self.register_buffer("table", torch.ones(1, 1, 1).expand(6, 1, 1))
        self.last, self.mid = nn.Conv2d(6, 5, 1), mid

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.mid(self, self.first(x.to(self.g)))))


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


def aliased(net: Changed) -> Changed:
    net.transposed = net.a.weight.detach().transpose(0, 1)
    return net


def cached(net: Changed, h: Tensor) -> Tensor:
    if not hasattr(net, "cache"):
        net.cache = net.a.weight * 2
    return nn.functional.conv2d(h, net.cache)


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
}


@pytest.mark.parametrize("name", HARD)
def test_what_weights_alone_do_not_tell_is_followed_or_built_anew(name: str) -> None:
    built, change = HARD[name]
    model = built()
    sampler = Sampler(model, SHAPE)
    change(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler.refresh()
        new = Sampler(model, SHAPE)
    images = torch.randint(0, 5, (3, *SHAPE), dtype=torch.uint8)
    for runtime in ("cpu", "eager", "reference"):
        assert torch.equal(*(each.sample(3, noise=noise(), runtime=runtime) for each in (sampler, new)))
    torch.testing.assert_close(sampler.log_prob(images), new.log_prob(images))


def test_log_prob_of_another_structure_is_refused() -> None:
    model = Changed()
    sampler = Sampler(model, SHAPE)
    model.more = nn.Conv2d(6, 6, 1)
    with pytest.raises(ValueError, match=r"other names or shapes now: take them with refresh\(\) first"):
        sampler.log_prob(torch.zeros(1, *SHAPE, dtype=torch.uint8))


def test_an_average_of_pytorch_s_is_taken_for_its_model() -> None:
    model = pixelcnn()
    average = torch.optim.swa_utils.AveragedModel(model)
    sampler = Sampler(model, SHAPE)
    take(model, trained_on(model))
    average.update_parameters(model)
    with silence():
        images = sampler.refresh(average).sample(3, noise=noise())
    assert torch.equal(images, Sampler(average, SHAPE).sample(3, noise=noise()))


# -- changes are told


def fused(kind: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], None]:
    def train(model: nn.Module) -> None:
        parameters = [p.requires_grad_() for p in model.parameters()]
        optimizer = kind(parameters, lr=1e-3, fused=True)
        model(torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)).square().mean().backward()
        optimizer.step()

    return train


def swapped(model: nn.Module) -> None:
    """As an average of the weights is put in for an evaluation."""
    for x, y in zip(model.parameters(), trained_on(model).parameters(), strict=True):
        x.data = y.data


def copied(model: nn.Module) -> None:
    for x, y in zip(model.parameters(), trained_on(model).parameters(), strict=True):
        x.data.copy_(y.data)


def one_bias(model: nn.Module) -> None:
    model.get_parameter("conv_out.bias").data.add_(1e-3)


def statistics(model: nn.Module) -> None:
    model.train()
    model(torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8))
    model.eval()


def replaced(model: nn.Module) -> None:
    model.get_submodule("conv_out").bias = nn.Parameter(model.get_parameter("conv_out.bias") + 1)


CHANGES = {
    "fused Adam": fused(torch.optim.Adam),
    "fused AdamW": fused(torch.optim.AdamW),
    "fused SGD": fused(torch.optim.SGD),
    "fused Adagrad": fused(torch.optim.Adagrad),
    "swapped": swapped,
    "copied": copied,
    "one bias": one_bias,
    "statistics": statistics,
    "replaced": replaced,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_sampler_whose_model_has_changed_says_so_once(name: str) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    with silence():
        before = sampler.sample(3, noise=noise())
    CHANGES[name](model)
    with pytest.warns(UserWarning, match=STALE + r".*sampler\.refresh\(\)") as told:
        assert torch.equal(sampler.sample(3, noise=noise()), before)
    assert told[0].filename == __file__
    with silence():
        assert torch.equal(sampler.sample(3, noise=noise()), before)
        sampler.logits(before)
        sampler.refresh()
        now = sampler.sample(3, noise=noise())
    assert torch.equal(now, Sampler(model, SHAPE).sample(3, noise=noise()))
    one_bias(model)
    with pytest.warns(UserWarning, match=STALE) as told:
        sampler.complete(before, torch.ones(5, 6, dtype=torch.bool))
    assert told[0].filename == __file__


def loaded(model: nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def moved(model: nn.Module) -> None:
    for x in model.parameters():
        x.data = x.data.clone()


@pytest.mark.parametrize("change", [loaded, moved, nn.Module.train, nn.Module.requires_grad_])
def test_what_changes_no_weight_is_not_told(change: Callable[[nn.Module], None]) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    change(model)
    with silence():
        sampler.sample(1)
        sampler.sample(1)


# -- copies, pickles, and what is printed


class Hooked(models.PixelCNN):
    """It holds a function that can't be pickled."""

    def __init__(self) -> None:
        super().__init__(1, 8, 1, n_classes=3)
        self.scale = lambda x: x * 2

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.scale(super().forward(images, labels))


def through(copied: Callable[[Sampler], Sampler]) -> tuple[Sampler, Sampler, nn.Module]:
    torch.manual_seed(0)
    model = models.PixelCNN(1, 8, 1, n_classes=3).eval()
    sampler = Sampler(model, SHAPE)
    return sampler, copied(sampler), model


WAYS: dict[str, Callable[[Sampler], Sampler]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda sampler: pickle.loads(pickle.dumps(sampler)),
    "pickled twice": lambda sampler: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(sampler)))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_draws_the_same_and_stands_alone(way: str) -> None:
    sampler, other, model = through(WAYS[way])
    labels, images = torch.tensor([0, 2, 1]), torch.zeros(3, *SHAPE, dtype=torch.uint8)
    expected = sampler.sample(3, labels, noise=noise())
    scored = sampler.log_prob(images, labels).detach()
    take(model, trained_on(model))
    for runtime in ("cpu", "eager", "reference"):
        with silence():
            assert torch.equal(other.sample(3, labels, noise=noise(), runtime=runtime), expected)
    assert torch.equal(other.log_prob(images, labels), scored)
    assert not other.log_prob(images, labels).requires_grad
    with pytest.raises(ValueError, match=r"copy, or comes out of a pickle: pass refresh\(model\)"):
        other.refresh()
    if way == "copy":  # it has what evaluates weights again
        with silence():
            other.refresh(model)
    else:
        with pytest.warns(UserWarning, match="built anew.*pickle"):
            other.refresh(model)
    new = Sampler(model, SHAPE).sample(3, labels, noise=noise())
    assert torch.equal(other.sample(3, labels, noise=noise()), new) and not torch.equal(new, expected)
    with silence():
        other.refresh()


def test_a_module_that_can_t_be_pickled_is_left_behind() -> None:
    sampler, labels = Sampler(Hooked().eval(), SHAPE), torch.tensor([0, 2, 1])
    with pytest.warns(UserWarning, match="travels without its module, which can't be pickled"):
        data = pickle.dumps(sampler)
    other = pickle.loads(data)
    assert torch.equal(*(each.sample(3, labels, noise=noise()) for each in (sampler, other)))
    for act in (
        lambda: other.sample(3, labels, runtime="reference"),
        lambda: other.log_prob(torch.zeros(3, *SHAPE, dtype=torch.uint8), labels),
    ):
        with pytest.raises(RuntimeError, match="out of a pickle without its module"):
            act()
    with pytest.raises(ValueError, match="labels span"):
        other.sample(3, torch.tensor([0, 3, 1]))
    assert "was not pickled" in repr(other)
    with silence():
        pickle.dumps(other)
    with silence():  # a copy needs no pickle
        assert copy.deepcopy(sampler).sample(3, labels, noise=noise(), runtime="reference").shape == (3, *SHAPE)


class Drawn(torch.utils.data.Dataset):
    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return self.sampler.sample(1, torch.tensor([index]), noise=noise(1))


def test_the_workers_of_a_data_loader_draw() -> None:
    sampler = Sampler(models.PixelCNN(1, 8, 1, n_classes=3).eval(), SHAPE)
    data = Drawn(sampler)
    loader = torch.utils.data.DataLoader(
        data, num_workers=1, multiprocessing_context=multiprocessing.get_context("spawn")
    )
    for index, image in enumerate(loader):
        assert torch.equal(image[0], data[index])


def test_what_is_printed() -> None:
    sampler = Sampler(models.PixelCNN(1, 8, 1, n_classes=3).eval(), SHAPE, precision="bf16")
    assert repr(sampler).startswith("<Sampler of PixelCNN: images 1x5x6, Categorical(levels=256, layout=")
    assert "labels 0...2, runtime 'cpu', precision 'bf16'" in repr(sampler) and "MB of weights>" in repr(
        sampler
    )
    assert "runtime 'reference'>" in repr(Sampler(pixelcnn(), SHAPE, runtime="reference"))


# -- likelihoods of the model as it is now


def test_log_prob_is_the_live_model_s_with_its_gradients() -> None:
    model, labels = pixelcnn(classes=3), torch.tensor([0, 2, 1])
    sampler = Sampler(model, SHAPE)
    images = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)
    take(model, trained_on(model))
    with silence():
        found = sampler.log_prob(images, labels)
    expected = -likelihood.nll(model, images, labels)
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    for x, y in zip(
        torch.autograd.grad(found.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="conditional"):
        sampler.log_prob(images)


def test_log_prob_leaves_the_model_alone() -> None:
    model = pixelcnn().train()
    seen: list[nn.Module] = []
    model.conv_in.register_forward_hook(lambda module, *_: seen.append(module))
    sampler = Sampler(model, SHAPE)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    images = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    found = sampler.log_prob(images)
    assert model.training and seen and model.conv_in not in seen
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    torch.testing.assert_close(found, -likelihood.nll(copy.deepcopy(model).eval(), images))


class InPlace(nn.Module):
    """It masks its weight in place when it is called, caches something, and checkpoints a part of itself."""

    levels = 5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 6, (2, 3)), nn.Conv2d(6, 5, 1)
        self.register_buffer("mask", torch.tensor([[1.0, 1, 1], [1, 0, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data *= self.get_buffer("mask")
        self.cached = x
        h = self.first(nn.functional.pad(x.to(self.first.weight), (1, 1, 1, 0)))
        return checkpoint(lambda h: self.last(torch.relu(h)), h, use_reentrant=False)


def test_log_prob_writes_into_no_weight_and_goes_through_checkpoints() -> None:
    model = InPlace()
    sampler, images = Sampler(model, SHAPE), torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    take(model, trained_on(model))
    before = model.first.weight.detach().clone()
    found = sampler.log_prob(images)
    gradients = torch.autograd.grad(found.sum(), list(model.parameters()))
    assert torch.equal(model.first.weight, before) and not hasattr(model, "cached")
    expected = torch.autograd.grad(-likelihood.nll(model, images).sum(), list(model.parameters()))
    for x, y in zip(gradients, expected, strict=True):
        torch.testing.assert_close(x, y)


# -- traces


class NotCopied(InPlace):
    def __deepcopy__(self, memo: dict) -> NotCopied:
        raise TypeError("there is only one")


class Locked(nn.Module):
    """It can't be copied, and assigns a buffer."""

    levels = 5
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lock, self.first, self.last = threading.Lock(), Masked(1, 6, [*ABOVE, *LEFT]), nn.Conv2d(6, 5, 1)
        self.register_buffer("cache", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x.to(self.cache)))
        self.cache = h.detach()[0, :, 0, 0]
        return self.last(h)


def test_a_module_that_can_t_be_copied_is_as_good_as_a_copy() -> None:
    model = Locked()
    images = torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(model, SHAPE)
    assert torch.equal(model.cache, torch.zeros(6))
    before = sampler.sample(3, noise=noise())
    with torch.no_grad():
        model.last.weight.mul_(-1)
    with pytest.warns(UserWarning, match=STALE):
        assert torch.equal(sampler.sample(3, noise=noise(), runtime="reference"), before)
    found, expected = sampler.log_prob(images), -likelihood.nll(model, images)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(x.sum(), model.last.weight)[0] for x in (found, expected))
    torch.testing.assert_close(*gradients)
    model.cache = torch.zeros(6)
    sampler.refresh()
    now = sampler.sample(3, noise=noise(), runtime="reference")
    assert torch.equal(now, sampler.sample(3, noise=noise())) and not torch.equal(now, before)
    assert torch.equal(model.cache, torch.zeros(6))


class Caching(Locked):
    """It keeps something of its weights at its first call."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.last.weight.detach() * 2
        return nn.functional.conv2d(torch.relu(self.first(x.to(self.cache))), self.kept)


def test_what_the_first_call_of_such_a_module_keeps_is_followed() -> None:
    model = Caching()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = Sampler(model, SHAPE)
        with torch.no_grad():
            model.last.weight.mul_(-1)
        sampler.refresh()
    images = (sampler.sample(3, noise=noise(), runtime=runtime) for runtime in ("cpu", "reference"))
    assert torch.equal(*images)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_borrowed_module_keeps_nothing_of_what_its_forward_left(runtime: str) -> None:
    model = NotCopied().train()
    model.last.eval()
    modes, attributes = [m.training for m in model.modules()], vars(model).keys()
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(model, SHAPE, runtime=runtime)  # type: ignore[arg-type]  # a str
    sampler.sample(2)
    with pytest.warns(UserWarning, match="can't be copied"):
        likelihood.bits_per_dim(model, [torch.zeros(1, *SHAPE, dtype=torch.uint8)])
    assert [m.training for m in model.modules()] == modes and vars(model).keys() == attributes

"""Random lives of models: what is done to one between samples, and whether its sampler follows or says that it does
not.

``check(seed)`` raises AssertionError, naming the seed and what was done, where a sampler is wrong in silence, or warns
in vain. ``held(seed)`` is of models that hold others, registered or not.
"""

from __future__ import annotations

import copy
import functools
import logging
import pickle
import random
import types
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from pixelcnn_fast import Sampler, accelerate, accelerated
from pixelcnn_fast.nn import raster_mask

LEVELS, SHAPE = 4, (1, 3, 4)
# What may change more than weights.
MORE = ("do_set_a_number", "do_set_an_integer", "do_set_a_function", "do_hook_that_scales", "do_convert")
NOTHING, MUCH = 1e-6, 1e-3  # of a difference of log-probabilities: may not be told; must be


class Conv(nn.Conv2d):
    """Masked. kind: what it does with its weight in eval mode."""

    mask: Tensor
    cache: Tensor | None = None

    def __init__(self, kind: str, mask: Literal["A", "B"], channels_in: int) -> None:
        super().__init__(channels_in, 6, 3, padding=1)
        self.kind, self.merged = kind, False
        self.register_buffer("mask", raster_mask(3, 3, mask).expand_as(self.weight).clone())
        self.register_buffer("folded", torch.zeros_like(self.weight), persistent=False)
        if kind == "swapping":
            self.average = nn.Parameter(self.weight.detach().clone().mul_(0.5))
        if kind in ("merging", "freezing"):
            self.a = nn.Parameter(0.3 * torch.randn(6, 2))
            self.b = nn.Parameter(0.3 * torch.randn(2, 9 * channels_in))

    def _delta(self) -> Tensor:
        return (self.a @ self.b).view_as(self.weight)

    def train(self, mode: bool = True) -> Conv:
        super().train(mode)
        if self.merged == mode and self.kind in ("merging", "freezing", "swapping"):
            self.merged = not mode
            if self.kind == "swapping":
                self.weight, self.average = self.average, self.weight
                return self
            self.weight.data += self._delta() * (-1 if mode else 1)
            if self.kind == "freezing":
                self.a.requires_grad_(mode)
                self.b.requires_grad_(mode)
        elif self.kind == "folding" and not mode:
            with torch.no_grad():
                self.get_buffer("folded").copy_(self.weight * self.mask)
        elif self.kind == "caching":
            self.cache = None if mode else (self.weight * self.mask).detach()
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight * self.mask
        if self.kind in ("merging", "freezing") and not self.merged:
            weight = (self.weight + self._delta()) * self.mask
        elif self.kind == "folding" and not self.training:
            weight = self.get_buffer("folded")
        elif self.kind == "caching" and self.cache is not None:
            weight = self.cache
        return F.conv2d(x, weight, self.bias, padding=1)


class Net(nn.Module):
    levels = LEVELS

    def __init__(self, r: random.Random, classes: int = 0) -> None:
        super().__init__()
        self.labels = nn.Embedding(classes, 6) if classes else None
        kinds = ["plain", "plain", "merging", "freezing", "swapping", "folding", "caching"]
        self.first, self.second = Conv(r.choice(kinds), "A", 1), Conv(r.choice(kinds), "B", 6)
        self.norm: nn.Module = nn.BatchNorm2d(6) if r.random() < 0.5 else nn.Identity()
        self.drop, self.last = nn.Dropout(0.3), nn.Conv2d(6, LEVELS, 1)
        self.scale, self.count, self.shift, self.at = 1.0, 0, 0, 0
        self.bank = nn.Parameter(1 + torch.rand(3, 6, 1, 1))
        self.register_buffer("steps", torch.zeros(()))  # which eval mode does not read
        self.register_buffer("rounds", torch.zeros((), dtype=torch.long))  # and which it reads for nothing
        self.activation: Callable[[Tensor], Tensor] = torch.tanh
        self.losses: list[float] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.count += 1
        is_warm = int(self.get_buffer("rounds")) < 3
        x = self.first(x.to(self.last.weight.dtype) / LEVELS)
        if self.labels is not None and labels is not None:
            if labels.numel() and int(labels.max()) >= self.labels.num_embeddings:
                raise ValueError("no such label")
            x = x + self.labels(labels)[:, :, None, None]
        if self.training:
            x = x * (1 + 0 * self.get_buffer("steps").add_(1)) * (0.5 if is_warm else 1)
        x = self.activation(
            self.norm(self.second(self.activation(x).roll(self.shift, 1))) * self.bank[self.at]
        )
        return self.last(self.drop(x * self.scale))


class Life:
    """A model, the sampler that was built from it, and what the sampler took last."""

    classes = 3  # of every third model

    def __init__(self, seed: int, done: Sequence[str] = ()) -> None:
        self.r, self.done = random.Random(seed), [*done]
        torch.manual_seed(seed)
        self.labels = (torch.arange(3),) if self.classes and seed % 3 == 0 else ()
        self.model = self.made()
        for p in self.model.parameters():
            p.data.mul_(2)
        self.model.train(self.r.random() < 0.5)
        self.images = torch.randint(LEVELS, (3, *SHAPE), dtype=torch.uint8)
        self.noise = torch.rand(2, *SHAPE, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Numbers of what can't be copied are those of the model itself.
            self.is_reference = seed % 5 == 4 and "a closure" not in self.done
            self.sampler = Sampler(
                self.model,
                SHAPE,
                runtime="reference" if self.is_reference else "auto",
                conditional=bool(self.labels),
            )
        self._took()

    def made(self) -> nn.Module:
        return Net(self.r, self.classes if self.labels else 0)

    def scored(self, model: nn.Module) -> Tensor:
        return scored(model, self.images, *self.labels)

    def check_sampler(self, sampler: Sampler) -> None:
        labels = tuple(x[:2] for x in self.labels)
        given = labels[0] if labels else None
        found, log_p = sampler.sample(2, given, noise=self.noise, log_probability=True)
        assert_drawn(found, log_p, self.taken, self.noise, *labels)

    def snapshot(self) -> nn.Module:
        """The model as it is now, in eval mode."""
        return copy.deepcopy(self.model).eval()

    def _took(self) -> None:
        self.taken, self.told = self.snapshot(), False
        self.is_another = False  # in more than its weights

    def check(self) -> None:
        """The next sample, log-probabilities, and what is told."""
        then, present = self.scored(self.taken), self.scored(self.snapshot())
        changed = float((then - present).abs().max())
        with heard() as told:
            self.check_sampler(self.sampler)
        if not self.told:
            assert told or changed < MUCH, f"not told of a change of {changed:.2g}"
            assert not told or changed > NOTHING, f"told of {told} where nothing has changed"
        self.told |= bool(told)
        torch.testing.assert_close(
            self.sampler.log_prob(self.images, *self.labels).detach().double(), present, atol=1e-3, rtol=1e-3
        )

    def refresh(self) -> None:
        with heard("is built anew") as anew:
            self.sampler.refresh(self.model)
        assert self.is_another or not anew, f"built anew, though only weights have changed: {anew}"
        self._took()

    def live(self, events: int) -> None:
        names = [name for name in vars(Life) if name.startswith("do_")]
        for _ in range(events):
            name = self.r.choice(names)
            self.done.append(name.removeprefix("do_"))
            self.is_another |= name in MORE
            getattr(self, name)()
            self.check()

    # -- what may happen

    def do_train(self) -> None:
        self.model.train()

    def do_eval(self) -> None:
        self.model.eval()

    def do_refresh(self) -> None:
        self.refresh()

    def do_step(self) -> None:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.3)
        loss = F.cross_entropy(self.model(self.images, *self.labels), self.images[:, 0].long())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(self.model, Net):
            self.model.losses.append(loss.item())
            self.model.get_buffer("rounds").add_(1)

    def do_set_a_number(self) -> None:
        if isinstance(self.model, Net):
            self.model.scale = self.r.choice([0.5, 1.0, 2.0])

    def do_set_an_integer(self) -> None:
        if isinstance(self.model, Net):
            setattr(self.model, self.r.choice(["shift", "at"]), self.r.randrange(3))

    def do_set_a_function(self) -> None:
        if isinstance(self.model, Net):
            functions: list[Callable[[Tensor], Tensor]] = [torch.tanh, F.silu, torch.tanh]
            self.model.activation = self.r.choice(functions)

    def do_set_what_is_not_read(self) -> None:
        vars(self.model).update(epoch=self.r.random(), notes={"lr": self.r.random(), "names": ["a", "b"]})

    def do_hook_that_logs(self) -> None:
        seen: list[object] = []
        kinds: list[Callable[[Tensor], object]] = [
            lambda x: 0.0,
            lambda x: x.mean(),
            lambda x: x.std().item(),
            lambda x: x.numpy(force=True),
        ]
        logged = self.r.choice(kinds)
        next(self.model.children()).register_forward_hook(
            lambda module, given, found: seen.append(logged(found.detach()))
        )

    def do_hook_that_scales(self) -> None:
        handle = self.model.register_forward_hook(lambda module, given, found: found * 0.5)
        if self.r.random() < 0.3:
            handle.remove()

    def do_copy(self) -> None:
        """Training goes on with a copy, or an average of weights; the sampler is given it."""
        self.model = AveragedModel(self.model).module if self.r.random() < 0.5 else copy.deepcopy(self.model)
        self.refresh()

    def do_hold_what_surrounds_it(self) -> None:
        held = [self.sampler, logging.getLogger(__name__)]
        vars(self.model)["around"] = self.r.choice(held), weakref.ref(self.model)

    def do_pickle(self) -> None:
        """What comes out of one knows no model."""
        if self.r.random() < 0.5:
            try:
                other = pickle.loads(pickle.dumps(self.sampler))
            except (pickle.PicklingError, AttributeError, TypeError):
                return
            assert other.fingerprint() == self.sampler.fingerprint()
            try:
                self.check_sampler(other)
            except RuntimeError as error:  # a hook that can't be pickled, and the module is to be run
                assert (self.is_reference or self.labels) and "without its module" in str(error)

    def do_average(self) -> None:
        with torch.no_grad():
            for x in self.model.parameters():
                x.mul_(0.9)

    def do_convert(self) -> None:
        self.model.to(self.r.choice([torch.float32, torch.float64])).train(self.model.training)
        self.refresh()

    def do_accelerate(self) -> None:
        if self.r.random() < 0.3:  # it takes long
            accelerate(self.model)
            self.model(self.images, *self.labels)
            accelerated(self.model).undo()


def scored(model: nn.Module, images: Tensor, *labels: Tensor) -> Tensor:
    with torch.no_grad():
        log_p = copy.deepcopy(model)(images, *labels).double().log_softmax(1)
    return log_p.gather(1, images.long()).flatten(1).sum(1)


def assert_drawn(images: Tensor, log_p: Tensor, model: nn.Module, noise: Tensor, *labels: Tensor) -> None:
    """That a model draws these images from this noise, one forward for each pixel; where rounding may decide, the
    levels on both sides of it will do."""
    model, seen = copy.deepcopy(model), torch.zeros_like(images)
    with torch.no_grad():
        for at in range(noise[0].numel()):
            y, x = divmod(at, SHAPE[2])
            p = model(seen, *labels)[:, :, y, x].double().softmax(1).cumsum(1)
            drawn = images[:, 0, y, x].long()[:, None]
            least = torch.cat([torch.zeros_like(p[:, :1]), p], 1).gather(1, drawn)[:, 0]
            u, most = noise[:, 0, y, x], p.gather(1, drawn)[:, 0]
            assert bool(((least - 1e-4 <= u) & (u <= most + 1e-4)).all()), f"another level at {(y, x)}"
            seen[:, 0, y, x] = images[:, 0, y, x]
    torch.testing.assert_close(log_p, scored(model, images, *labels), atol=1e-3, rtol=1e-3)


@contextmanager
def heard(what: str = "has changed since") -> Iterator[list[str]]:
    """What is told of changes, or of something else."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [str(w.message) for w in caught if what in str(w.message)]


# -- models that hold others


class Holding(nn.Module):
    """A network is called through something that the model holds in one of several ways."""

    levels = LEVELS

    def __init__(self, base: nn.Module, way: str) -> None:
        super().__init__()
        hold, self.call = WAYS[way]
        self.temperature, self.held = nn.Parameter(torch.ones(())), hold(base)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.held, x) * self.temperature


class Slots:
    __slots__ = ("inside",)

    def __init__(self, inside: object) -> None:
        self.inside = inside


WAYS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any, Tensor], Tensor]]] = {
    "registered": (lambda net: net, lambda held, x: held(x)),
    "a list": (lambda net: [net], lambda held, x: held[0](x)),
    "a tuple": (lambda net: (1, (net,)), lambda held, x: held[1][0](x)),
    "a dictionary": (lambda net: {"net": {3: net}}, lambda held, x: held["net"][3](x)),
    "a queue": (lambda net: deque([net]), lambda held, x: held[0](x)),
    "a partial": (lambda net: functools.partial(net), lambda held, x: held(x)),
    "an argument": (lambda net: functools.partial(lambda net, x: net(x), net), lambda held, x: held(x)),
    "a method": (lambda net: net.forward, lambda held, x: held(x)),
    "an object": (lambda net: types.SimpleNamespace(net=net), lambda held, x: held.net(x)),
    "an object with slots": (lambda net: Slots([net]), lambda held, x: held.inside[0](x)),
    "a closure": (lambda net: lambda x: net(x), lambda held, x: held(x)),
    "a wrapper": (lambda net: [nn.DataParallel(net)], lambda held, x: held[0](x)),
}


class Contents(Life):
    """The base lives, and its holder is sampled from."""

    classes = 0

    def __init__(self, seed: int) -> None:
        self.way = [*WAYS][seed % len(WAYS)]
        super().__init__(seed, [self.way])

    def made(self) -> nn.Module:
        self.base = Net(self.r).eval()  # whose mode its holder does not set
        return Holding(self.base, self.way)

    def snapshot(self) -> nn.Module:
        """A function's closure is not copied with it."""
        found = Holding(copy.deepcopy(self.base), self.way).eval()
        assert isinstance(self.model, Holding)
        found.temperature = copy.deepcopy(self.model.temperature)
        return found

    def live(self, events: int) -> None:
        for _ in range(events):
            what = self.r.choice(["weights", "a number", "nothing", "refresh", "a buffer", "another"])
            self.done.append(what)
            self.is_another |= what in ("a number", "a buffer", "another")
            if what == "weights":
                with torch.no_grad():
                    for p in self.base.parameters():
                        p.mul_(self.r.choice([0.7, -1.1]))
                self.base.train().eval()
            elif what == "a number":
                self.base.scale = self.r.choice([0.5, 1.0, 2.0])
            elif what == "a buffer":
                self.base.first.mask[:, :, 0, 0] = self.r.choice([0, 1])
                self.base.train().eval()
            elif what == "another":
                other = copy.deepcopy(self.base)
                self.model.held, self.base = WAYS[self.way][0](other), other
            elif what == "refresh":
                self.refresh()
            self.check()


def check(seed: int, kind: Callable[[int], Life] = Life, events: int = 8) -> None:
    life = kind(seed)
    try:
        life.check()
        life.live(events)
    except Exception as error:
        raise AssertionError(f"seed {seed}, after {', '.join(life.done)}: {error}") from error


def held(seed: int) -> None:
    check(seed, Contents, 5)

"""Random causal networks made of the calls that capture follows, sampled by every runtime: ``make fuzz N=1000``.

``check(seed)`` builds the network of a seed and raises AssertionError, naming the seed, where runtimes disagree.
"""

import copy
import random
import sys
import warnings
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, Unsupported, heads
from pixelcnn_fast.heads.logistic_mixture import MixtureLayout
from pixelcnn_fast.native import native
from pixelcnn_fast.nn import channel_groups
from pixelcnn_fast.nn.channel_order import CHANNEL_ORDERS, ChannelOrder
from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.program.verify import verify
from tests.system import lives
from tests.system.agreement import noise
from tests.system.fuzzed_layers import (
    CLASSES,
    KINDS,
    MIXING_KINDS,
    STYLES,
    Attends,
    Cells,
    Conditioning,
    Conv,
    Layer,
    Twice,
)
from tests.tolerances import assert_identical_up_to_rounding

pipeline.watches.append(lambda name, program: verify(program))

ORDERS: tuple[ChannelOrder | None, ...] = (None, *CHANNEL_ORDERS)


class Fuzzed(nn.Module):
    """The network of a seed. for_cuda: without what the CUDA runtime refuses."""

    def __init__(self, seed: int, for_cuda: bool = False) -> None:
        super().__init__()
        r = random.Random(seed)
        torch.manual_seed(seed)
        colours = r.choice([1, 1, 2, 3])
        self.shape = (colours, r.randint(1, 6), r.randint(1, 6))
        self.levels = r.choice([2, 3, 7])
        order = r.choice(ORDERS) if colours > 1 else None
        self.name = f"seed {seed}, {self.shape}, {self.levels} levels, {order}"
        groups = channel_groups(r.randint(colours, 9), colours, order or "thirds")
        self.input = r.choice(["unit", "centred", "one-hot", "embedded"])
        each = {"one-hot": self.levels, "embedded": 3}.get(self.input, 1)
        self.embedding = nn.Embedding(self.levels, 3)
        self.first = Conv(r, torch.arange(colours).repeat_interleave(each), groups, "A", order is not None)
        kinds = KINDS if order is not None else KINDS + MIXING_KINDS
        self.layers = nn.ModuleList(
            Layer(r, groups, order is not None, kinds) for _ in range(r.randint(1, 5))
        )
        is_free = order is None and not for_cuda
        if is_free and (more := random.Random(f"styles {seed}")).random() < 0.6:
            layer: nn.Module = Layer(more, groups, False, STYLES)
            self.layers.insert(more.randint(0, len(self.layers)), layer)
        if is_free and (more := random.Random(f"cells {seed}")).random() < 0.4:
            in_cells = more.random() < 0.4 or min(self.shape[1:]) < 4  # windows of few pixels are all alike
            layer = Cells(more, len(groups)) if in_cells else Twice(more, len(groups), self.shape)
            self.layers.insert(more.randint(0, len(self.layers)), layer)
        if is_free and (more := random.Random(f"attention {seed}")).random() < 0.3:
            self.layers.insert(more.randint(0, len(self.layers)), Attends(more, len(groups)))
        bernoulli = self.levels == 2 and r.random() < 0.5
        outputs = 1 if bernoulli else self.levels
        self.probabilities = bernoulli and r.random() < 0.5
        layout = r.choice(list(heads.LAYOUTS))
        self.head: heads.Head = (
            heads.Bernoulli(self.probabilities) if bernoulli else heads.Categorical(self.levels, layout)
        )
        colour_of = torch.arange(colours).repeat_interleave(outputs)
        if layout in ("N,L*C,H,W", "N,L,C,H,W"):
            colour_of = torch.arange(colours).repeat(outputs)
        if is_free and (own := random.Random(f"mixture {seed}")).random() < 0.3:
            uniform, numbers = own.choice([0, 0.1]), 3 if colours > 1 else own.randint(2, 3)
            self.head = heads.LogisticMixture(
                own.randint(1, 4),
                self.levels,
                colours,
                own.choice(get_args(MixtureLayout)),
                per_colour=own.random() < 0.5,
                uniform=uniform,
            )
            colour_of = torch.zeros(self.head.components * (1 + numbers * colours), dtype=torch.long)
        self.last = Conv(r, groups, colour_of, "1x1", order is not None)
        self.forbidden = -1 if bernoulli or self.levels < 3 or r.random() < 0.7 else r.randrange(self.levels)
        if not isinstance(self.head, heads.Categorical):
            self.forbidden = -1
        self.squeezes = random.Random(f"squeezes {seed}").random() < 0.1  # a batch of one away
        self.dtype = r.choice([torch.float64] * 6 + [torch.float32, torch.bfloat16, torch.float16])
        self.double().eval()
        self.scale = 1.0
        with torch.no_grad():
            levels = torch.randint(self.levels, (2, *self.shape))
            self.scale = 2 / max(float(self.features(levels, self.given(2)).std()), 1e-3)

        self.to(self.dtype)

    def given(self, n: int) -> Conditioning:
        generator = torch.Generator().manual_seed(n)
        condition = torch.randn(n, 2, *self.shape[1:], generator=generator).to(self.first.weight.dtype)
        return Conditioning(torch.arange(n) * 2 % CLASSES, condition)

    def features(self, images: Tensor, given: Conditioning) -> Tensor:
        x = images.to(self.first.weight.dtype)
        if self.input == "unit":
            x = x / (self.levels - 1)
        elif self.input == "centred":
            x = (2 * x - self.levels) / self.levels
        else:
            rows = (
                F.one_hot(images.long(), self.levels)
                if self.input == "one-hot"
                else self.embedding(images.long())
            )
            x = rows.permute(0, 1, 4, 2, 3).flatten(1, 2).to(x)
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, given)
        return self.last(h)

    def forward(self, images: Tensor, labels: Tensor, condition: Tensor) -> Tensor:
        x = self.output(images, labels, condition)
        return x.squeeze(0) if self.squeezes else x

    def output(self, images: Tensor, labels: Tensor, condition: Tensor) -> Tensor:
        x = self.scale * self.features(images, Conditioning(labels, condition))
        if isinstance(self.head, heads.Bernoulli):
            return torch.sigmoid(x) if self.probabilities else x
        if not isinstance(self.head, heads.Categorical):
            return x
        layout, colours, axis = self.head.layout, self.shape[0], 2
        if layout in ("N,L*C,H,W", "N,L,C,H,W"):
            x, axis = x.unflatten(1, (self.levels, colours)), 1
        else:
            x = x.unflatten(1, (colours, self.levels))
        if self.forbidden >= 0:
            x.select(axis, self.forbidden)[...] = -1e9 if self.dtype != torch.float16 else -6e4
        if layout in ("N,C*L,H,W", "N,L*C,H,W"):
            return x.flatten(1, 2)
        return x.permute(0, 1, 3, 4, 2) if layout == "N,C,H,W,L" else x


def distance_from_exact(model: Fuzzed, images: Tensor, given: Conditioning, found: Tensor) -> float:
    """How far distributions are from those of the same model in float64, at most."""
    exact, colours = copy.deepcopy(model).double(), model.shape[0]
    parameters = model.head.arranged(exact.output(images, given.labels, given.condition.double()), colours)
    return model.head.distance(found, parameters, colours).max().item()


def built(model: Fuzzed, condition: Tensor) -> Sampler:
    shape = tuple(condition.shape[1:])
    with warnings.catch_warnings():
        # Many of them make nothing of their labels, or condition.
        warnings.simplefilter("ignore", UserWarning)
        return Sampler(model, model.shape, head=model.head, conditional=True, condition_shape=shape)


def check(seed: int) -> None:
    """Samplers compare program and model themselves; where logits round, a runtime may round about as the model does,
    and images may differ."""
    model = Fuzzed(seed)
    n = 1 if model.squeezes else 3
    labels, condition = given = model.given(n)
    images = torch.randint(model.levels, (n, *model.shape), generator=torch.Generator().manual_seed(seed))
    if not bool((model(images, *given) != model(images * 0, *given)).any()):
        return  # some layer has overwritten all that depends on the image
    try:
        sampler = built(model, condition)
    except Unsupported as refused:
        assert "it attends to pixels that are not drawn yet" in str(refused), model.name
        return
    u = noise(n, sampler.noise_shape, seed)
    naive = sampler.sample(n, labels, noise=u, condition=condition, runtime="reference")
    assert model.forbidden < 0 or not bool((naive == model.forbidden).any()), (
        f"{model.name}: a forbidden level"
    )
    expected = sampler.logits(naive, labels, condition=condition, runtime="reference")
    for runtime in ("eager", "cpu") if native() else ("eager",):
        message = (
            f"{model.name}: {runtime} differs from reference; layers {[layer.kind for layer in model.layers]}"
        )
        if runtime == "cpu" and model.dtype in (torch.bfloat16, torch.float16):
            continue
        found = sampler.logits(naive, labels, condition=condition, runtime=runtime)
        if model.dtype == torch.float64:
            drawn = sampler.sample(n, labels, noise=u, condition=condition, runtime=runtime)
            assert torch.equal(drawn, naive), message
            assert_identical_up_to_rounding(*(sampler.head.comparable(x) for x in (found, expected)))
        else:
            own, theirs = (distance_from_exact(model, naive, given, x) for x in (found, expected))
            few = 16 * torch.finfo(model.dtype).eps  # roundings, also of a narrow component's mean
            moved = model.head.distance(expected.double() * (1 + few), expected, model.shape[0]).max().item()
            assert own <= 4 * theirs + few + moved, f"{message}: {own} and {theirs}"


def main(first: int, count: int) -> int:
    failures = 0
    for name, checked in {
        "networks": check,
        "lives": lives.check,
        "models that hold others": lives.held,
    }.items():
        failed = 0
        for seed in range(first, first + count):
            try:
                checked(seed)
            except Exception as error:
                failed += 1
                print(f"{name}, seed {seed}: {type(error).__name__}: {error}", flush=True)
        print(f"{count} {name}, {failed} failures", flush=True)
        failures += failed
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[2]) if len(sys.argv) > 2 else 0, int(sys.argv[1])))

"""``accelerate`` changes how fast a model is, and nothing else about it, whatever the model is and becomes."""

import copy
import gc
import importlib
import logging
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pixelcnn_fast import Sampler, accelerate, accelerated
from pixelcnn_fast.accelerate import Accelerated
from pixelcnn_fast.image_forms import from_levels
from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.rewriting.backend import shared
from tests.needs import needs_native
from tests.rewriting.conftest import rewritten_however_small  # noqa: F401  # a fixture
from tests.rewriting.networks import Model, moved
from tests.system import foreign, fuzz
from tests.system.networks import enlivened
from tests.tiers import few, thorough, tiered

# -- layers that equal a masked convolution at one moment, and not later


class Layer(nn.Conv2d):
    """What ``forward`` does with its weight, its mask and ``extra`` parameters is given."""

    mask: Tensor

    def __init__(
        self, channels_in: int, forward: Callable[[Any, Tensor], Tensor], /, kind: Any = "B", **extra: Any
    ) -> None:
        super().__init__(channels_in, 4, 3, padding=1)
        self.register_buffer("mask", raster_mask(3, 3, kind).expand_as(self.weight).clone())
        self.register_buffer("calls", torch.zeros(()))
        self.later = False
        if forward is three_times:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # it has one
        for name, x in extra.items():
            self.register_parameter(name, nn.Parameter(x))
        self.forward_of = forward

    def forward(self, input: Tensor) -> Tensor:
        return self.forward_of(self, input)

    def masked(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        weight = self.weight if weight is None else weight
        return F.conv2d(x, weight * self.mask, self.bias, padding=self.padding)


def counted(layer: Any, x: Tensor) -> Tensor:
    layer.calls.add_(1)
    return layer.masked(x)


def masked(layer: Any, x: Tensor) -> Tensor:
    return layer.masked(x)


def in_place(layer: Any, x: Tensor) -> Tensor:
    layer.weight.data *= layer.mask
    return layer.masked(x)


def masked_in_place(layer: Any, x: Tensor) -> Tensor:
    layer.weight.data *= layer.mask
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.padding)


def three_times(layer: Any, x: Tensor) -> Tensor:
    return 3 * layer.masked(x)


LATER: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Tensor]]] = {
    "gain of 1": (lambda m, x: m.gain * m.masked(x), {"gain": torch.ones(())}),
    "gains of 1": (lambda m, x: m.gain * m.masked(x), {"gain": torch.ones(1, 4, 1, 1)}),
    "low rank of 0": (
        lambda m, x: m.masked(x, m.weight + (m.b @ m.a)[:, :1, None, None]),
        {"a": torch.randn(2, 4), "b": torch.zeros(4, 2)},
    ),
    "noise in training": (
        lambda m, x: m.masked(x, m.weight + (torch.randn_like(m.weight) if m.training else 0)),
        {},
    ),
    "dropout in training": (lambda m, x: F.dropout(m.masked(x), 0.5, m.training), {}),
    "dropped weights": (lambda m, x: m.masked(x, F.dropout(m.weight, 0.5, m.training)), {}),
    "counts its calls": (counted, {}),
    "weight and bias of 0": (three_times, {}),
    "clamped": (lambda m, x: m.masked(x).clamp(-1, 1), {}),
    "another size, another function": (lambda m, x: m.masked(x) * (1 if x.shape[-1] < 8 else 2), {}),
    "changes its mind": (lambda m, x: m.masked(x, m.weight.flip(0) if m.later else m.weight), {}),
    "gated by 0": (lambda m, x: m.masked(x) + m.alpha * x[:, :1], {"alpha": torch.zeros(())}),
    "casts": (lambda m, x: m.masked(x.to(m.weight)), {}),
    "scaled in training": (lambda m, x: m.masked(x) * (1.1 if m.training else 1.0), {}),
    "masked in place, too": (in_place, {}),
}


QUICK = ("low rank of 0", "dropped weights", "another size, another function", "changes its mind", "casts")


class Norm(nn.BatchNorm2d):
    """A batch norm of another kind."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def all_of_them() -> nn.Module:
    layers: list[nn.Module] = [Layer(4, forward, **extra) for forward, extra in LATER.values()]
    between = [part for layer in layers for part in (layer, nn.Tanh())]
    return nn.Sequential(nn.Conv2d(2, 4, 1), Layer(4, masked), Norm(4), nn.ReLU(), *between)


def one_of_them(name: str) -> nn.Module:
    forward, extra = LATER[name]
    return nn.Sequential(Layer(2, forward, **extra), nn.ReLU(), Layer(4, forward, **extra))


@pytest.fixture
def plain_random_numbers() -> Iterator[None]:
    """Inductor draws those of plain PyTorch."""
    with torch._inductor.config.patch(fallback_random=True):
        yield


def accelerated_copy(plain: Model, mode: Any = "eager") -> tuple[Model, Accelerated]:
    fast = accelerate(copy.deepcopy(plain), mode)
    return fast, accelerated(fast)


def change(model: nn.Module) -> None:
    """Moves its parameters, as training does; and some layers are to do something else from now on."""
    moved(model)
    for module in model.modules():
        if isinstance(module, Layer):
            module.later = True


def results(model: nn.Module, *given: Tensor | None) -> list[Tensor]:
    torch.manual_seed(2)
    y = model(*given)
    if not torch.is_grad_enabled() or not y.requires_grad:
        return [y]
    model.zero_grad()
    y.square().mean().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


def strides(x: Tensor) -> list[int]:
    """Those that mean something."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def assert_alike(fast: nn.Module, plain: nn.Module, *given: Tensor | None) -> None:
    for training in (True, False):
        for context in (nullcontext, torch.no_grad):
            with context():
                found, expected = (results(each.train(training), *given) for each in (fast, plain))
                laid_out = expected
                # PyTorch's fake tensors may be wrong about strides, and so may whoever compiles by them.
                if strides(found[0]) != strides(expected[0]):
                    alone = copy.deepcopy(plain)
                    alone.compile(backend="eager")
                    laid_out = results(alone, *given)
            assert len(found) == len(expected)
            assert strides(found[0]) == strides(laid_out[0])
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *tiered(((name, "eager") for name in LATER), lambda case: case[0] in QUICK),
        pytest.param("all", "inductor", marks=[needs_native, thorough]),
    ],
)
def test_what_a_layer_does_later_is_still_right(name: str, mode: Any, plain_random_numbers: None) -> None:
    plain = (all_of_them() if name == "all" else one_of_them(name)).double()
    dtype = torch.float32 if name == "casts" else torch.float64
    x, wider = (torch.randn(2, 2, 8, width).to(dtype) for width in (7, 9))
    fast, handle = accelerated_copy(plain, mode)
    assert_alike(fast, plain, x)
    for each in (fast, plain):
        change(each)
    assert_alike(fast, plain, x)
    assert_alike(fast, plain, wider)
    layers = {m for m in fast.modules() if isinstance(m, Layer)}
    assert sum(handle.report.rewritten.values()) >= len(layers), str(handle)


# -- what stays


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = Layer(1, masked, "A"), nn.BatchNorm2d(4)
        self.body = nn.Sequential(Layer(4, in_place), nn.ELU(), nn.Conv2d(4, 5, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images.to(self.first.weight.dtype)))
        return self.body(x)[:, :, None]  # logits of 5 levels [N, 5, 1, H, W]


IMAGES = torch.randint(0, 5, (3, 1, 9, 7), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def network() -> Network:
    torch.manual_seed(0)
    return enlivened(Network()).double()


def test_the_module_stays_what_it_is_and_undo_leaves_no_trace() -> None:
    model = network()
    seen: list[int] = []
    model.norm.register_forward_hook(lambda *_: seen.append(1))
    modules, before = [(id(m), type(m)) for m in model.modules()], dict(vars(model))
    tensors = [(name, id(t)) for name, t in model.state_dict(keep_vars=True).items()]
    expected = model(IMAGES)
    handle = accelerated(accelerate(model))
    torch.testing.assert_close(model(IMAGES), expected)
    assert len(seen) == 2
    assert [(id(m), type(m)) for m in model.modules()] == modules
    assert [(name, id(t)) for name, t in model.state_dict(keep_vars=True).items()] == tensors
    handle.undo()
    assert vars(model) == before and torch.equal(model(IMAGES), expected)
    handle.undo()
    accelerated(accelerate(model)).undo()
    assert vars(model) == before


def test_only_what_accelerate_has_returned_is_accelerated() -> None:
    model = network()
    assert accelerate(model) is model and accelerated(model) is accelerated(model)
    for other in (copy.deepcopy(model), network(), nll):
        with pytest.raises(ValueError, match="is not accelerated: pass what accelerate"):
            accelerated(other)


@pytest.mark.parametrize("undone", [True, False])
def test_a_handle_keeps_no_model_alive(undone: bool) -> None:
    model = network()
    handle, gone = accelerated(accelerate(model)), weakref.ref(model)
    if undone:
        handle.undo()
    del model
    gc.collect()
    assert gone() is None
    handle.undo()


def test_undone_handles_leave_later_ones_alone() -> None:
    model = Layer(2, masked)
    first = accelerated(accelerate(model))
    first.undo()
    second = accelerated(accelerate(model))
    first.undo()
    model(torch.randn(1, 2, 6, 5))
    assert second.report.rewritten and not first.report.rewritten


def test_copies_and_pickles_are_plain() -> None:
    model = network()
    expected = model(IMAGES)
    accelerate(model)
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert "_compiled_call_impl" not in vars(each) and torch.equal(each(IMAGES), expected)


def test_it_is_compiled_once() -> None:
    model = network()
    accelerate(model)
    with pytest.raises(
        ValueError, match=r"Network is accelerated already: accelerated\(it\).undo\(\) comes first"
    ):
        accelerate(model)
    in_place = network()
    in_place.compile()
    with pytest.raises(ValueError, match="Network is compiled already: build it without"):
        accelerate(in_place)
    not_callable: Any = 3
    with pytest.raises(TypeError, match="target is int, expected a module or a function"):
        accelerate(not_callable)
    with pytest.raises(TypeError, match="target is the class Linear, expected a module or a function"):
        accelerate(nn.Linear)
    for compiled in (torch.compile(network()), torch.compile(lambda x: x)):
        with pytest.raises(ValueError, match="is what torch.compile has returned: pass what it was given"):
            accelerate(compiled)
    mode: Any = "fast"
    with pytest.raises(ValueError, match="mode is 'fast'"):
        accelerate(network(), mode)


def test_the_handle_tells_what_was_rewritten_and_where() -> None:
    model = network()
    handle = accelerated(accelerate(model))
    assert "nothing was compiled yet" in str(handle)
    model(IMAGES)
    text = str(handle)
    assert "rewritten  conv2d [4, 1, 3, 3] → masked_conv2d: test_accelerate.py:" in text
    assert "in masked: return F.conv2d(x, weight * self.mask" in text
    assert (
        "left       conv2d [5, 4, 1, 1]: its weight has no mask, and no padding or crop could be taken in"
        in text
    )


def test_live_gradients_are_those_of_live_taps_only() -> None:
    for live in (False, True):
        layer = Layer(2, masked_in_place)
        accelerate(layer, live_gradients=live)
        layer(torch.randn(2, 2, 6, 5)).square().sum().backward()
        assert layer.weight.grad is not None and bool(layer.weight.grad[:, :, 2].any()) == (not live)


@pytest.mark.parametrize("mode", ["eager", pytest.param("inductor", marks=[needs_native, thorough])])
def test_losses_follow_the_plain_model(mode: Any) -> None:
    curves: list[list[float]] = []
    for fast in (False, True):
        model = network().train()
        handle = accelerated(accelerate(model, mode)) if fast else None
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        curves.append([])
        for _ in range(6):
            loss = nll(model, IMAGES, levels=5).mean()
            curves[-1].append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert handle is None or handle.report.rewritten
    assert curves[0] == pytest.approx(curves[1], rel=1e-9) and curves[0][-1] < curves[0][0]


def test_a_function_is_accelerated_with_the_models_that_it_calls() -> None:
    plain, fast = network().train(), network().train()

    def step(model: nn.Module, images: Tensor) -> Tensor:
        loss = F.cross_entropy(model(images), images.long())
        loss.backward()
        return loss.detach()

    fast_step = accelerate(step)
    handle = accelerated(fast_step)
    assert fast_step.__name__ == "step" and fast_step is not step
    torch.testing.assert_close(fast_step(fast, images=IMAGES), step(plain, IMAGES))
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert handle.report.rewritten
    found = sum(handle.report.rewritten.values())
    handle.undo()
    torch._dynamo.reset()
    torch.testing.assert_close(fast_step(fast, IMAGES), step(plain, IMAGES))
    assert sum(handle.report.rewritten.values()) == found


def test_samplers_run_the_plain_model() -> None:
    """But in ``log_prob``, in eval mode: tests/sampler_life/test_what_surrounds_it.py."""
    model = network().eval()
    handle = accelerated(accelerate(model))
    sampler = Sampler(model, (1, 6, 5), levels=5)
    for runtime in ("reference", "eager", "auto"):
        sampler.sample(2, runtime=runtime)
    model.train()
    sampler.refresh().log_prob(IMAGES[..., :6, :5])
    assert not handle.report.rewritten and not handle.report.left


# -- among the rest of PyTorch


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_under_autocast(lower: torch.dtype) -> None:
    plain = network().float()
    fast, handle = accelerated_copy(plain)
    with torch.autocast("cpu", lower):
        found, expected = results(fast, IMAGES), results(plain, IMAGES)
    assert handle.report.rewritten and found[0].dtype == expected[0].dtype
    exact = results(plain.double(), IMAGES)
    for a, b, c in zip(found, expected, exact, strict=True):
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 1e-6


class Partly(nn.Module):
    """Some of its calls run under autocast."""

    def __init__(self, first: bool, second: bool) -> None:
        super().__init__()
        self.conv, self.lower = Layer(2, masked), (first, second)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.lower[0]):
            y = self.conv(F.pad(x, (1, 0)))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.lower[1]):
            a, b = F.relu(y)[:, :, :-1].chunk(2, 1)
            return torch.tanh(a) * torch.sigmoid(b)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)])
@pytest.mark.parametrize("training", [False, True])
def test_under_autocast_here_and_there(first: bool, second: bool, around: bool, training: bool) -> None:
    plain = Partly(first, second)
    fast, handle = accelerated_copy(plain)
    x = torch.randn(2, 2, 6, 5)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=around):
        found, expected = fast(x), plain(x)
    assert handle.report.rewritten
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


class Returning(nn.Module):
    """Its caller sees, and may write, what is in the middle of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = Layer(2, masked), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, self.out(torch.tanh(y[:, :2]) * torch.sigmoid(y[:, 2:]))


def test_what_is_written_between_forward_and_backward() -> None:
    """Weights are stepped and results are written; PyTorch keeps products, and so must we."""
    plain = Returning().double()
    fast, handle = accelerated_copy(plain)
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    found = []
    for model in (fast, plain):
        given = x.clone().requires_grad_()
        y, z = model(given)
        with torch.no_grad():
            model.conv.weight.add_(1)
            y.detach().mul_(2)
        z.square().sum().backward()
        found.append([z.detach(), given.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert len(handle.report.rewritten) == 1 and "known outside the graph" in str(handle)


@pytest.mark.parametrize("reentrant", [True, False])
def test_within_a_checkpoint(reentrant: bool) -> None:
    plain = network()
    fast, handle = accelerated_copy(plain)
    x = IMAGES.double().requires_grad_()

    class Around(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return checkpoint(self[0], input, use_reentrant=reentrant)

    for a, b in zip(results(Around(fast), x), results(Around(plain), x), strict=True):
        torch.testing.assert_close(a, b)
    assert handle.report.rewritten


class Counting(nn.Module):
    """It writes into a buffer with a method of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.get_buffer("mean").lerp_(x.mean((0, 2, 3)), 0.1)
        return x - x.mean((0, 2, 3), keepdim=True)


STATISTICS: dict[str, Callable[[int], nn.Module]] = {
    "batch norm": nn.BatchNorm2d,
    "instance norm": lambda channels: nn.InstanceNorm2d(channels, track_running_stats=True),
    "a buffer": Counting,
}


@pytest.mark.parametrize("mode", ["eager", pytest.param("inductor", marks=[needs_native, thorough])])
@pytest.mark.parametrize("norm", STATISTICS)
def test_a_checkpoint_around_what_writes_into_a_buffer(norm: str, mode: Any) -> None:
    """Which is computed again in the backward, and written then, too."""
    torch._dynamo.reset()

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = Layer(1, masked)
            self.inside = nn.Sequential(Layer(2, masked), STATISTICS[norm](4))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inside, self.first(x)[:, :2], use_reentrant=False)

    plain = Around().double()
    fast, handle = accelerated_copy(plain, mode)
    for _ in range(2):
        for model in (fast, plain):
            model(IMAGES.double()).square().sum().backward()
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(dict(fast.named_buffers()), dict(plain.named_buffers()))
    assert "a checkpoint around what writes into a buffer" in str(handle)
    assert sum(n for (what, _), n in handle.report.rewritten.items() if "masked_conv2d" in what) >= 1


def test_with_other_parameters() -> None:
    model = network()
    other = {name: p.detach() * 2 for name, p in model.named_parameters()}
    expected = torch.func.functional_call(model, other, (IMAGES,))
    handle = accelerated(accelerate(model))
    torch.testing.assert_close(torch.func.functional_call(model, other, (IMAGES,)), expected)
    assert handle.report.rewritten


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed"
)
@pytest.mark.parametrize("around", [False, True])
def test_data_parallel(one_process, monkeypatch, around: bool) -> None:
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 100)
    plain, inner = network(), network()
    if around:  # DistributedDataParallel's buckets cut the graph, and give the backend fake tensors
        fast = nn.parallel.DistributedDataParallel(inner, bucket_cap_mb=1e-4)
        handle = accelerated(accelerate(fast))
    else:
        handle = accelerated(accelerate(inner))
        fast = nn.parallel.DistributedDataParallel(inner)
    for a, b in zip(results(fast, IMAGES), results(plain, IMAGES), strict=True):
        torch.testing.assert_close(a, b)
    assert handle.report.rewritten, str(handle)


@thorough
def test_twelve_models_of_a_class_and_twelve_sizes_of_batches() -> None:
    handles = []
    for width in range(4, 16):
        model = reference.PixelCNN(1, width, 1, None, 3)
        handles.append(accelerated(accelerate(model)))
        model(IMAGES)
    assert [sum(handle.report.rewritten.values()) for handle in handles] == 12 * [6]
    model = reference.PixelCNN(1, 4, 1, None, 3).double()
    plain, handle = copy.deepcopy(model), accelerated(accelerate(model))
    for n in range(1, 13):
        images = IMAGES[:1].expand(n, -1, -1, -1)
        torch.testing.assert_close(model(images), plain(images))
    assert 6 <= sum(handle.report.rewritten.values()) <= 3 * 6 and not handle.report.warnings


@thorough
def test_older_pytorch_tells_when_models_of_a_class_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without isolated compilations, they share those that PyTorch allows a function, and a report."""
    monkeypatch.setattr(importlib.import_module("pixelcnn_fast.accelerate"), "_isolated", dict)
    shared.cache_clear()
    torch._dynamo.reset()
    handles = []
    with pytest.warns(UserWarning, match="PyTorch has stopped compiling"):
        for width in range(4, 16):
            model = reference.PixelCNN(1, width, 1, None, 3).double()
            expected = model(IMAGES)
            handles.append(accelerated(accelerate(model)))
            torch.testing.assert_close(model(IMAGES), expected)
    assert len({id(handle.report) for handle in handles}) == 1
    assert "note       PyTorch has stopped compiling" in str(handles[0])
    shared.cache_clear()


def test_compilation_that_is_switched_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.warns(UserWarning, match="can't compile here .TORCHDYNAMO_DISABLE=1"):
        assert accelerated(accelerate(reference.PixelCNN(1, 4, 1))).report.rewritten
    mode: Any = "fast"
    with pytest.raises(ValueError, match="mode is 'fast'"):
        accelerate(network(), mode)


@pytest.mark.parametrize("error", [RuntimeError, ImportError])
def test_why_pytorch_can_t_compile_is_told(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        raise error("Python 4 is not supported")

    monkeypatch.setattr(torch._dynamo.eval_frame, "check_if_dynamo_supported", check)
    with pytest.warns(UserWarning, match="can't compile here .Python 4 is not supported"):
        handle = accelerated(accelerate(reference.PixelCNN(1, 4, 1)))
    assert handle.report.rewritten and "note       PyTorch can't compile" in str(handle)


class Broken(nn.Module):
    """Between its layers, Python looks at values, so that PyTorch captures two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(2, masked), Layer(4, masked)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        if y.max() > 0.5:
            y = -y
        return self.second(y)


def test_a_graph_break_costs_no_rewrite() -> None:
    plain = Broken().double()
    fast, handle = accelerated_copy(plain)
    for scale in (0.01, 10):
        assert_alike(fast, plain, scale * torch.randn(2, 2, 8, 7, dtype=torch.float64))
    lines = {where for what, where in handle.report.rewritten if "masked_conv2d" in what}
    assert lines and sum(handle.report.rewritten.values()) >= 2 * 2


def test_nan_in_a_dead_weight_is_not_spread() -> None:
    plain = Layer(2, masked).double()
    fast, x = copy.deepcopy(plain), torch.randn(2, 2, 6, 5, dtype=torch.float64)
    expected = plain(x)
    accelerate(fast)
    with torch.no_grad():
        fast.weight[:, :, 2, 2] = torch.nan
        torch.testing.assert_close(fast(x), expected)


class Numbered(nn.Module):
    """It is compiled again for every name."""

    name = ""

    def forward(self, x: Tensor) -> Tensor:
        return x + len(self.name)


def call_with_names(model: Numbered, call: Callable[[Tensor], Tensor]) -> None:
    for i in range(12):
        model.name = i * "x"
        assert torch.equal(call(torch.ones(2)), torch.full((2,), 1.0 + i))


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """What PyTorch's compiler itself logs."""
    records: list[logging.LogRecord] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = logging.getLogger("torch._dynamo.convert_frame"), Listener()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize("level", [logging.NOTSET, logging.CRITICAL])
def test_it_is_told_when_pytorch_gives_up(level: int, logged: list[logging.LogRecord]) -> None:
    model, logger = Numbered(), logging.getLogger("torch._dynamo.convert_frame")
    handle, before = accelerated(accelerate(model)), logger.level
    logger.setLevel(level)
    with pytest.warns(UserWarning, match="PyTorch has stopped compiling 'forward'") as told:
        call_with_names(model, model)
    logger.setLevel(before)
    assert told[0].filename == __file__
    assert "note       PyTorch has stopped compiling" in str(handle) and len(logged) == (
        level == logging.NOTSET
    )


def test_hooks_that_pytorch_does_not_call_are_told_once() -> None:
    model, seen = network(), list[int]()
    model.norm.register_forward_hook(lambda *_: seen.append(1))
    handle = accelerated(accelerate(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(IMAGES)
        model.register_forward_hook(lambda *_: seen.append(2))
        model(IMAGES)
    assert seen == [1, 1, 2]
    model.norm.register_forward_pre_hook(lambda *_: seen.append(3))
    with pytest.warns(UserWarning, match="parts of the model have got hooks since its first call") as told:
        model(IMAGES)
        model(IMAGES)
    assert len(told) == 1 and "skip_nnmodule_hook_guards" in str(handle)


def test_hooks_on_a_part_that_is_not_registered_are_told() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = [network()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.held[0](x)

    model = accelerate(Holding())
    model(IMAGES)
    model.held[0].norm.register_forward_hook(lambda module, given, found: found + 1)
    with pytest.warns(UserWarning, match="parts of the model have got hooks since its first call"):
        model(IMAGES)


@pytest.mark.parametrize("mode", few(["eager", "inductor"], 1))
def test_tensors_that_begin_to_share_memory_are_told_once(mode: Any) -> None:
    model = network()
    handle = accelerated(accelerate(model, mode=mode))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(IMAGES)
        model.norm.weight.data = torch.ones_like(model.norm.weight)
        model(IMAGES)
    model.norm.bias.data = model.norm.weight.data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(IMAGES)
        model(IMAGES)
    told = [w for w in caught if "have begun to share memory" in str(w.message)]
    assert len(told) == (mode == "inductor") and ("undo()" in str(handle)) == (mode == "inductor")


@pytest.mark.parametrize("mode", few(["eager", "inductor"], 1))
def test_function_transforms_go_through_an_accelerated_model(mode: Any) -> None:
    model, images = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), torch.rand(2, 1, 5, 5)
    own = {name: x.detach() for name, x in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (images,)).square().mean()

    expected = torch.func.grad(loss)(own)
    accelerate(model, mode=mode)
    found = torch.func.grad(loss)(own)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", ["given", "held", "bound"])
def test_hooks_in_models_that_a_function_calls_are_told_once(way: str) -> None:
    model, seen = network(), list[int]()

    def given(images: Tensor, model: nn.Module) -> Tensor:
        return model(images)

    def held(images: Tensor) -> Tensor:
        return model(images)

    ways: dict[str, Callable[..., Tensor]] = {"given": given, "held": held, "bound": model.forward}
    function = accelerate(ways[way])
    called = partial(function, IMAGES, **({"model": model} if way == "given" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called()
        called()
    part = model.norm if way == "bound" else model
    part.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="parts of the model have got hooks since its first call") as told:
        called()
        called()
    assert len(told) == 1 and not seen


def test_it_is_not_told_of_models_that_somebody_else_compiles(logged: list[logging.LogRecord]) -> None:
    model, other = Numbered(), Numbered()
    handle = accelerated(accelerate(model))
    model(torch.ones(2))
    call_with_names(other, torch.compile(other, backend="eager"))
    assert len(logged) == 1 and not handle.report.warnings


@pytest.mark.parametrize("name", tiered(foreign.NETWORKS, lambda name: name == "in-place masks"))
def test_other_people_s_networks(name: str) -> None:
    found = foreign.NETWORKS[name]
    plain = found.model()
    levels = torch.randint(foreign.LEVELS, (3, *found.shape), generator=torch.Generator().manual_seed(0))
    images = from_levels(levels, found.arguments.get("image_form", "uint8"), foreign.LEVELS, torch.float64)
    fast, handle = accelerated_copy(plain)
    assert_alike(fast, plain, images, *found.given(3).values())
    other_calls = {"strides", "windows", "functional", "channels last", "dense", "rows and columns"}
    nothing_to_fuse = {*other_calls, "around", "two scales", "tokens", "start token", "axial"}
    assert bool(handle.report.rewritten) == (name not in nothing_to_fuse)


SEEDS = range(40)
LEFT = {5, 14, 23, 25, 35, 37}  # those that have nothing to rewrite


@pytest.mark.parametrize("seed", few(SEEDS, 1))
def test_random_networks(seed: int) -> None:
    plain = fuzz.Fuzzed(seed)
    plain.double()
    fast, handle = accelerated_copy(plain)
    labels, condition = plain.given(3)
    images = torch.randint(plain.levels, (3, *plain.shape), generator=torch.Generator().manual_seed(seed))
    assert_alike(fast, plain, images, labels, condition)
    assert bool(handle.report.rewritten) == (seed not in LEFT)


# -- where PyTorch can't compile


def test_without_a_compiler_own_layers_are_swapped_by_type(monkeypatch) -> None:
    model = enlivened(reference.PixelCNN(1, 8, 2, None, 5)).double()
    gated = reference.GatedPixelCNN(3, 6, [1, 2], channel_order="thirds", levels=8).double()
    module = importlib.import_module("pixelcnn_fast.accelerate")
    monkeypatch.setattr(module, "_why_not_compiled", lambda: "Python 4 is not supported")
    recurrent = [reference.PixelRNN(kind, 1, 8, 1).double() for kind in ("row_lstm", "diagonal_bilstm")]
    for each, images, swapped in (
        (model, IMAGES, 10),
        (gated, IMAGES.expand(-1, 3, -1, -1), 8),
        (recurrent[0], IMAGES, 7),
        (recurrent[1], IMAGES, 9),
    ):
        kinds, plain = {name: type(m) for name, m in each.named_modules()}, copy.deepcopy(each)
        with pytest.warns(
            UserWarning, match="PyTorch can't compile here \\(Python 4 is not supported\\), so only"
        ):
            handle = accelerated(accelerate(each))
        assert sum(handle.report.rewritten.values()) == swapped
        assert all(isinstance(m, kinds[name]) for name, m in each.named_modules())
        assert_alike(each, plain, images)
        for copied in (copy.deepcopy(each), pickle.loads(pickle.dumps(each))):
            assert {name: type(m) for name, m in copied.named_modules()} == kinds
            torch.testing.assert_close(copied(images), plain(images))
        handle.undo()
        assert {name: type(m) for name, m in each.named_modules()} == kinds
        torch.testing.assert_close(each(images), plain(images))

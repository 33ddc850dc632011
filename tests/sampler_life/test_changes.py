"""A sampler whose model has changed says so."""

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from pixelcnn_fast import Sampler
from pixelcnn_fast.refresh import snapshot
from tests.refresh.test_weights import trained_on
from tests.sampler_life import asserting
from tests.sampler_life.common import SHAPE, STALE, Around, noise, pixelcnn, silence


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


def one_weight(model: nn.Module) -> None:
    """None of those that are looked at."""
    with torch.no_grad():
        model.get_parameter("conv_out.weight").view(-1)[1] += 1e-3


def statistics(model: nn.Module) -> None:
    model.train()
    model(torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8))
    model.eval()


def transposed(model: nn.Module) -> None:
    """In the same memory, and its first elements are what they were."""
    weight = next(
        p for p in model.parameters() if p.dim() == 4 and p.shape[0] == p.shape[1] and p.shape[2] > 1
    )
    weight.data = weight.data.transpose(0, 1)


def exchanged(model: nn.Module) -> None:
    """As ``Module.to`` does if torch.__future__.set_swap_module_params_on_conversion(True) was called."""
    bias = model.get_parameter("conv_out.bias").requires_grad_()
    graph = bias.sum()  # which may hold the parameter, but nothing else may
    torch.utils.swap_tensors(bias, nn.Parameter(bias.detach() + 1))
    del graph


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
    "one weight": one_weight,
    "statistics": statistics,
    "transposed": transposed,
    "exchanged": exchanged,
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
        sampler.complete(before, torch.ones(SHAPE[1:], dtype=torch.bool))
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
    one_bias(model)
    asserting.stale(sampler)


def with_buffer(buffer: Tensor) -> Any:
    return Around(lambda model, h: h + 0 * (model.buffer != 0).sum(), buffer=buffer, step=torch.zeros(1))


@pytest.mark.parametrize(
    "buffer",
    [
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, dtype=torch.complex64).conj(),
        torch.full((3,), 2**53),
        torch.zeros(3, dtype=torch.bool),
    ],
    ids=["complex", "conjugate", "large integers", "bools"],
)
def test_buffers_of_every_kind(buffer: Tensor) -> None:
    model = with_buffer(buffer)
    sampler = Sampler(model, SHAPE, runtime="reference" if buffer.is_conj() else "auto")
    asserting.quiet(sampler)
    changed = model.get_buffer("buffer").data
    if changed.is_complex():
        changed.imag.add_(1)
    else:
        changed.copy_(changed.logical_not() if changed.dtype == torch.bool else changed + 1)
    asserting.stale(sampler)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_what_the_forward_does_not_read_does_not_matter(runtime: Any) -> None:
    """Such as a counter, or another head."""
    model = with_buffer(torch.zeros(1))
    sampler = Sampler(model, SHAPE, runtime=runtime)
    before = sampler.fingerprint()
    model.get_buffer("step").add_(1)
    with silence():
        sampler.sample(1)
        assert sampler.refresh().fingerprint() == before


@pytest.mark.parametrize("size", [(0,), (5, 0)])
def test_a_buffer_without_elements(size: tuple[int, ...]) -> None:
    sampler = Sampler(with_buffer(torch.empty(size, dtype=torch.float64)), SHAPE)
    asserting.quiet(sampler)


class WithGaps(nn.Module):
    """Of the memory that its weights are in, they fill little, and the centre's are zero."""

    levels = 5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 5, 3, padding=1)
        self.conv.weight = nn.Parameter(torch.randn(5, 1, 3, 4)[..., :3])
        self.conv.weight.data *= torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
        self.register_buffer("shift", torch.randn(1).expand(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.to(self.conv.weight)) + self.get_buffer("shift")[:, None, None]


@pytest.mark.parametrize("name", ["conv.weight", "shift"])
def test_tensors_with_gaps(name: str) -> None:
    model = WithGaps()
    sampler = Sampler(model, SHAPE)
    asserting.quiet(sampler)
    changed = model.get_parameter(name) if "." in name else model.get_buffer(name)
    changed.data.select(0, 0).mul_(2)
    asserting.stale(sampler)


def test_memory_that_was_freed_is_not_read() -> None:
    """As libraries do that shard a model: the tensor stays, without its memory."""
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    expected = sampler.sample(3, noise=noise())
    model.get_parameter("conv_out.weight").untyped_storage().resize_(0)
    asserting.stale(sampler, expected)


def test_what_is_written_while_all_is_compared_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    compare = snapshot.are_equal
    compared: list[Tensor] = []

    def compared_then_written(x: Tensor, y: Tensor) -> bool:
        compared.append(x)
        same = compare(x, y)
        if len(compared) == len(sampler._engine.snapshot.weights):
            one_bias(model)
        return same

    moved(model)
    monkeypatch.setattr(snapshot, "are_equal", compared_then_written)
    asserting.quiet(sampler)
    asserting.stale(sampler)


def memory_of(model: nn.Module) -> StorageWeakRef:
    return StorageWeakRef(model.get_parameter("conv_out.weight").untyped_storage())


def test_a_model_that_is_gone_leaves_no_memory_behind() -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    sampler.sample(1)
    memory = memory_of(model)
    assert not memory.expired()
    del model
    gc.collect()
    assert memory.expired()
    asserting.quiet(sampler)


@pytest.mark.parametrize("change", [moved, swapped])
def test_memory_that_a_model_gave_up_is_free_after_the_next_call(change: Callable[[nn.Module], None]) -> None:
    model = pixelcnn()
    sampler, memory = Sampler(model, SHAPE), memory_of(model)
    change(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler.sample(1)
    assert memory.expired()

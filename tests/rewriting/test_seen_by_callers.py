"""What a caller sees of a rewritten model besides values: shared memory, gradients of what is returned and how they are
laid out, values written between forward and backward, arguments that overlap later on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from pixelcnn_fast.rewriting.backend import Backend
from tests.rewriting.networks import SHAPE, Programmed, compiled_copy, images, in_order


def pair(program: Callable[..., Any]) -> tuple[Programmed, Programmed, Backend]:
    plain = Programmed(program).double()
    return plain, *compiled_copy(plain)


# -- shared memory


def some_map(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.tanh(m.a(x)))


def flattened_without_gradients(m: Any, x: Tensor) -> Any:
    h = some_map(m, x)
    with torch.no_grad():
        flat = h.flatten(1)
    return h, flat


def flattened_under_autocast(m: Any, x: Tensor) -> Any:
    h = some_map(m, x)
    with torch.autocast("cpu"):
        flat = h.flatten(1)
    return h, flat


SHARING: dict[str, Callable[..., Any]] = {
    "a crop twice": lambda m, x: in_order(
        crop := m.a(x * 1)[:, :, 1:, 1:], (crop.contiguous(), crop.contiguous())
    ),
    "a crop, flattened": lambda m, x: in_order(
        crop := m.a(x * 1)[:, :, 1:, 1:], (crop.flatten(1), crop.reshape(2, -1))
    ),
    "a crop by image": lambda m, x: in_order(
        images := m.a(x * 1)[:, :, 1:].unbind(0), [images[at].contiguous() for at in (0, 0, 1)]
    ),
    "flattened without gradients": flattened_without_gradients,
    "flattened under autocast": flattened_under_autocast,
    "written and flattened": lambda m, x: in_order(h := some_map(m, x), h.relu_(), (h, h.flatten(1))),
    "written and returned": lambda m, x: in_order(h := some_map(m, x), (h, F.relu(h, inplace=True))),
    "written and sliced": lambda m, x: in_order(
        h := some_map(m, x), y := h.mul_(2), (h.chunk(2, 1)[0], y[:, 1:])
    ),
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", SHARING)
def test_results_share_memory_as_pytorch_s_do(name: str, gradients: bool) -> None:
    shared = []
    for model in pair(SHARING[name])[:2]:
        with torch.set_grad_enabled(gradients):
            first, second, *_ = model(images())
        before = second.detach().clone()
        first.detach().zero_()
        shared.append((torch.equal(second.detach(), before), first.requires_grad, second.requires_grad))
    assert shared[0] == shared[1]


def copied_and_written(m: Any, x: Tensor) -> Any:
    h = m.b(m.a(x))
    c = h + 1
    e = c.flip(2)
    c.add_(1)
    h.mul_(2)
    d = h - 3
    g = d.flip(2)
    d.add_(1)
    return e, g, d


def test_a_map_that_is_written_between_its_readers_is_copied_again() -> None:
    plain, fast, backend = pair(copied_and_written)
    with torch.no_grad():
        for a, b in zip(fast(images()), plain(images()), strict=True):
            torch.testing.assert_close(a, b)
    assert backend.report.rewritten


@pytest.mark.parametrize(
    "part", [lambda c: c, lambda c: c.detach(), lambda c: c[0], lambda c: c.chunk(2, 1)[1]]
)
def test_strides_of_crops_may_be_relied_on(part: Callable[[Tensor], Tensor]) -> None:
    plain, fast, _ = pair(lambda m, x: part(m.a(x * 1)[:, :, 1:, 1:]).as_strided((2, 3), (40, 1)) + 0)
    torch.testing.assert_close(fast(images()), plain(images()))


# -- arguments that overlap with others in a later call


def masked_in_place_and_argument(m: Any, x: Tensor, other: Tensor) -> Any:
    with torch.no_grad():
        m.a.weight.mul_(m.mask)
    other.add_(1)
    return F.conv2d(x, m.a.weight, padding=1)


# a program, and which of what it has its second argument overlaps with, in the second call
OVERLAPPING: dict[str, tuple[Callable[..., Any], Callable[[Any, Tensor], Tensor]]] = {
    "a block": (lambda m, x, other: in_order(z := m.a(x) + x, other.add_(1), F.relu(z)), lambda m, x: x[:]),
    "a mask": (
        lambda m, x, other: in_order(
            weight := m.a.weight * m.mask, other.zero_(), F.conv2d(x, weight, m.a.bias, padding=1)
        ),
        lambda m, x: m.mask[:],
    ),
    "a weight that is masked in place": (masked_in_place_and_argument, lambda m, x: m.a.weight.data[:]),
    "a gate": (
        lambda m, x, other: in_order(t := torch.tanh(x[:, :2]), other.add_(1), t * torch.sigmoid(x[:, 2:])),
        lambda m, x: x[:],
    ),
    "a window": (
        lambda m, x, other: in_order(padded := F.pad(x, (1, 1, 2, 0)), other.add_(1), m.a(padded, 0)),
        lambda m, x: x[:],
    ),
    "a window, with a buffer": (
        lambda m, x: in_order(padded := F.pad(x, (1, 1, 2, 0)), m.map.mul_(2), m.a(padded, 0)),
        lambda m, x: m.map[:],
    ),
}


@pytest.mark.parametrize("name", OVERLAPPING)
def test_arguments_may_overlap_with_anything_later_on(name: str) -> None:
    program, of = OVERLAPPING[name]
    plain, fast, _ = pair(program)
    found = []
    with torch.no_grad():
        for model in (plain, fast):
            x = images()
            other = of(model, x)
            if "buffer" in name:
                model(images())
                found.append(model(other))
            else:
                model(images(), other.clone())
                found.append(model(x, other))
    torch.testing.assert_close(found[1], found[0])


# -- gradients


def test_gradients_of_a_masked_weight_that_is_returned_are_dense() -> None:
    def program(m: Any, x: Tensor) -> Any:
        weight = m.a.weight * m.mask
        return F.conv2d(x, weight, m.a.bias, padding=1), weight

    plain, fast, backend = pair(program)
    expected, found = (torch.autograd.grad(y.sum(), w)[0] for y, w in (m(images()) for m in (plain, fast)))
    assert expected[:, :, 2].abs().sum() > 0 and "masked_conv2d, dense gradients" in str(backend.report)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_images_are_laid_out_as_pytorch_lays_them_out(layout: torch.memory_format) -> None:
    plain, fast, backend = pair(lambda m, x: m.b(torch.tanh(m.a(x * 1))))
    x = images().contiguous(memory_format=layout).requires_grad_()
    (expected,), (found,) = (torch.autograd.grad(m(x).square().sum(), x) for m in (plain, fast))
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride() and backend.report.rewritten


JOINING: list[Callable[[Any, Tensor], Tensor]] = [
    lambda m, x: m.b(torch.tanh(m.a(x) + x)),
    lambda m, x: m.b(torch.relu(x * m.a(x))) + x,
    lambda m, x: m.b(m.a(x).add_(x)),
]


@pytest.mark.parametrize("program", JOINING)
def test_gradients_of_what_joins_maps_are_laid_out_as_pytorch_lays_them_out(program):
    plain, fast, backend = pair(program)

    def seen(model: Programmed) -> list[Tensor]:
        x, gradients = images().requires_grad_(), list[Tensor]()
        of_x = x * 1
        of_x.register_hook(lambda g: gradients.append(g.view(2, -1)))
        model(of_x).square().sum().backward()
        return gradients

    found = seen(fast)
    torch.testing.assert_close(found, seen(plain))
    assert found and backend.report.rewritten


KEPT: dict[str, Callable[..., Any]] = {
    "a gate and its half": lambda m, x: in_order(
        ab := m.wide(x).chunk(2, 1), t := torch.tanh(ab[0]), (t * torch.sigmoid(ab[1]), t)
    ),
    "a gate that is written inside": lambda m, x: in_order(
        ab := m.wide(x).chunk(2, 1),
        t := torch.tanh(ab[0]),
        y := t * torch.sigmoid(ab[1]),
        t.data.add_(1),
        (y, torch.zeros(1)),
    ),
    "a padded map": lambda m, x: in_order(padded := F.pad(x * 1, (1, 1, 2, 0)), (m.a(padded, 0), padded)),
    "a crop and its copy": lambda m, x: in_order(
        crop := m.a(x * 1)[:, :, 1:, 1:], (crop * crop, crop.contiguous())
    ),
}


@pytest.mark.parametrize("through_data", [True, False])
@pytest.mark.parametrize("name", KEPT)
def test_what_is_returned_may_be_written_before_the_backward(name, through_data):
    def gradients(model: Programmed) -> Any:
        y, other = model(images())
        with torch.no_grad():
            (other.data if through_data else other).add_(1)
        try:
            y.square().sum().backward()
        except RuntimeError as error:
            return str(error)[:60]
        return [p.grad for p in model.parameters() if p.grad is not None]

    expected, found = (gradients(model) for model in pair(KEPT[name])[:2])
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gradients", [True, False])
def test_forward_mode_derivatives_are_refused(gradients: bool) -> None:
    """PyTorch would take what the ops leave out for zero."""
    _, fast, backend = pair(lambda m, x: m.a(x) + 1)
    with torch.set_grad_enabled(gradients):
        fast(images())
        assert backend.report.rewritten
        with forward_ad.dual_level():
            fast(images())
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                fast(forward_ad.make_dual(images(), torch.ones(SHAPE, dtype=torch.float64)))


def test_forward_mode_derivatives_of_what_is_not_rewritten_are_left() -> None:
    _, fast, backend = pair(lambda m, x: m.a(x))
    fast(images())  # is rewritten
    doubled = torch.compile(lambda x: 2 * x, backend=backend)
    doubled(images())
    with forward_ad.dual_level():
        found = doubled(forward_ad.make_dual(images(), torch.ones(SHAPE, dtype=torch.float64)))
        assert torch.equal(forward_ad.unpack_dual(found).tangent, torch.full(SHAPE, 2.0, dtype=torch.float64))
    assert backend.report.rewritten


# -- shapes


RESHAPING: dict[str, tuple[Any, ...]] = {
    "t_": (),
    "swapaxes_": (0, 1),
    "swapdims_": (0, 1),
    "squeeze_": (),
    "unsqueeze_": (0,),
    "as_strided_": ((2, 2), (1, 2)),
}


@pytest.mark.parametrize("name", RESHAPING)
def test_each_way_to_reshape_in_place_is_known(name: str) -> None:
    def reshaped(x: Tensor) -> Tensor:
        x = x * 1
        getattr(x, name)(*RESHAPING[name])
        return x

    x, backend = torch.randn(5, 3), Backend()
    found, expected = torch.compile(reshaped, backend=backend)(x), reshaped(x)
    assert torch.equal(found, expected) and found.stride() == expected.stride()
    assert "a graph that reshapes a tensor in place" in str(backend.report)


def test_a_tensor_that_is_reshaped_in_place_leaves_the_graph() -> None:
    def program(m: Any, x: Tensor) -> Tensor:
        h = m.a(x * 1)
        h.transpose_(1, 2)
        h.transpose_(1, 3)
        return h

    plain, fast, backend = pair(program)
    expected, found = (m(images()) for m in (plain, fast))
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride() and "a graph that reshapes a tensor in place" in str(
        backend.report
    )


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "crop", [(slice(None), slice(3, 3)), (slice(2, 2), slice(None)), (slice(9), slice(9, 12))]
)
def test_crops_may_be_empty(crop: tuple[slice, slice], gradients: bool) -> None:
    plain, fast, _ = pair(lambda m, x: m.a(x * 1)[:, :, crop[0], crop[1]] * 2)
    with torch.set_grad_enabled(gradients):
        expected, found = (m(images()) for m in (plain, fast))
    assert found.shape == expected.shape and not found.numel()
    if gradients:
        found.sum().backward()
        of_weight = dict(fast.named_parameters())["a.weight"].grad
        assert of_weight is not None and not of_weight.any()


def test_empty_batches() -> None:
    plain, fast, _ = pair(lambda m, x: m.b(torch.tanh(m.a(x))))
    expected, found = (m(images()[:0]) for m in (plain, fast))
    assert found.shape == expected.shape and found.stride() == expected.stride()

"""Programs that a rewrite could get wrong: modes that change on the way, writes, memory that is shared."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pixelcnn_fast.rewriting.backend import Backend
from pixelcnn_fast.rewriting.regions import Regions
from tests.rewriting.networks import Programmed, compiled_copy, images, in_order
from tests.tiers import few


def first_user_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.a(x)
    return y + m.b(x)


def last_users(m: Any, x: Tensor) -> Tensor:
    h = m.b(m.a(x))
    with torch.no_grad():
        k = h.flip(3)
    return h.flip(2) + k


def checkpoint_with_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return checkpoint(lambda v: torch.relu(m.a(v)), x, use_reentrant=False)


def source_written(m: Any, x: Tensor) -> Tensor:
    x = 1 * x
    with torch.no_grad():
        a = m.a(x)
        x.add_(1)
        b = m.b(x)
        return m.c(a + b)


def new_data_in_a_checkpoint(m: Any, x: Tensor) -> Tensor:
    def body(v: Tensor) -> Tensor:
        m.a.weight.data = m.a.weight.data * m.a.mask
        return torch.tanh(F.conv2d(v, m.a.weight, m.a.bias, padding=1))

    return checkpoint(body, x, use_reentrant=False) + 1


def zeros_written(m: Any, x: Tensor) -> Tensor:
    zeros = torch.zeros_like(m.a.weight)
    zeros[:, :, 2] = 0.3
    return F.conv2d(x, torch.where(m.a.mask.bool(), m.a.weight, zeros), padding=1)


def product_into_a_buffer(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = torch.mul(m.a.weight, m.a.mask, out=m.spare)
        return F.conv2d(x, weight, padding=1)


def activation_into_a_buffer(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.tanh(m.a(x), out=m.map) + 1


def gate_into_a_buffer(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        a, b = m.a(x).chunk(2, 1)
        return torch.tanh(a, out=m.map[:, :2]) * torch.sigmoid(b)


def normalised_weight(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = m.a.weight * m.a.mask
        F.embedding(torch.tensor([1, 2]), m.a.mask.view(16, 9), max_norm=0.1)
        return F.conv2d(x, weight, padding=1)


def named_arguments(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.relu(input=m.a(x)) + F.leaky_relu(negative_slope=0.2, input=m.b(x))
        a, b = m.c(y).chunk(2, 1)
        return torch.tanh(input=a) * torch.sigmoid(input=F.relu(input=b, inplace=True))


def normalised_weight_by_name(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = m.a.weight * m.a.mask
        F.embedding(torch.tensor([1, 2]), weight=m.a.mask.view(16, 9), max_norm=0.1)
        return F.conv2d(x, weight, padding=1)


def array_written(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = m.a.weight * m.a.mask
        weight.numpy()[:] = 3
        y = m.a(m.b(x))
        y.numpy()[:] = 2.0
        return m.c(y) + F.conv2d(x, weight, padding=1)


def array_added_to(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        features, r = m.a(x), 1 * x
        t, z = torch.tanh(features[:, :2]), m.b(x) + r
        array = features.numpy()
        array += 3
        r.numpy()[:] = 9.0
        return torch.cat([F.relu(z), t * torch.sigmoid(features[:, 2:])], 1)


def two_results_into_buffers(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight, r = m.a.weight * m.a.mask, 1 * x
        index = torch.empty(4, 4, 3, 3, dtype=torch.long)
        torch.max(torch.stack([m.a.weight, m.b.weight]), 0, out=(weight, index))
        z = m.b(x) + r
        torch.max(torch.stack([x, 3 * x]), 0, out=(r, torch.empty(x.shape, dtype=torch.long)))
        return F.relu(z) + F.conv2d(x, weight, padding=1)


def window_into_a_buffer(m: Any, x: Tensor) -> Tensor:
    buffer = 1 * x.detach()
    y = F.conv2d(F.pad(buffer, (1, 1, 1, 1)), m.a.weight * m.a.mask)
    more = torch.stack([x.detach(), 3 * x.detach()])
    torch.max(more, 0, out=(buffer, torch.empty(x.shape, dtype=torch.long)))
    return y


def statistics_written(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = m.a.weight * m.a.mask
        ones = torch.ones(144, dtype=x.dtype)
        more = torch.full((2, 144, 2, 2), 3.0, dtype=x.dtype)
        torch.native_batch_norm(more, None, None, weight.view(-1), ones, True, 0.5, 1e-5)
        return F.conv2d(x, weight, padding=1)


def product_written_and_divided(m: Any, x: Tensor) -> Tensor:
    weight = m.a.weight * m.a.mask
    weight[:, 0] = 1.0
    return F.conv2d(x, weight / 2, padding=1)


def product_written_and_multiplied(m: Any, x: Tensor) -> Tensor:
    weight = (m.a.weight * m.a.mask) * 1
    weight[:, :, 2, 2] = 0.3
    return F.conv2d(x, weight * torch.ones_like(m.a.mask), padding=1)


def product_written_and_copied(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = m.a.weight * m.a.mask
        weight.add_(0.1)
        m.a.weight.copy_(weight)
    return F.conv2d(x, m.a.weight, padding=1)


def product_written_and_made_the_data(m: Any, x: Tensor) -> Tensor:
    weight = m.a.weight.data * m.a.mask
    weight[:, :, 2, 2] = 0.3
    m.a.weight.data = weight
    return F.conv2d(x, m.a.weight, padding=1)


def mask_made_and_written(m: Any, x: Tensor) -> Tensor:
    mask = m.a.mask * 1
    mask[:, :, 2, 2] = 1
    return F.conv2d(x, m.a.weight * mask, padding=1)


def mask_written_between_product_and_copy(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        mask = 1 * m.a.mask
        weight = m.a.weight * mask
        mask[:, :, 2, 2] = 1
        mask[:, :, 0, 0] = 0
        m.a.weight.copy_(weight)
    return F.conv2d(x, m.a.weight, padding=1)


def padded_map_written(m: Any, x: Tensor) -> Tensor:
    padded = F.pad(1 * x, (1, 1, 1, 1))
    padded[:, :, 0] = 1
    return F.conv2d(padded, m.a.weight * m.a.mask)


def data_written_after(m: Any, x: Tensor) -> Tensor:
    m.a.weight.data = m.a.weight.data * m.a.mask
    m.a.weight.data += 1
    return F.conv2d(x, m.a.weight, padding=1)


def data_written_through_its_source(m: Any, x: Tensor) -> Tensor:
    data = m.a.weight.data * m.a.mask
    m.a.weight.data = data
    data.add_(1)
    return F.conv2d(x, m.a.weight, padding=1)


def data_exchanged(m: Any, x: Tensor) -> Tensor:
    data = m.a.weight.data
    m.a.weight.data = m.b.weight.data
    m.b.weight.data = data
    data.mul_(m.a.mask)
    return F.conv2d(x, m.a.weight, padding=1) + F.conv2d(x, 2 * m.b.weight, padding=1)


def mask_given_data(m: Any, x: Tensor) -> Tensor:
    data = m.a.mask * 1
    m.a.mask.data = data
    weight = m.a.weight * m.a.mask
    data[:, :, 0] = 0
    data[:, :, 2] = 1
    return F.conv2d(x, weight, padding=1)


def data_transposed(m: Any, x: Tensor) -> Tensor:
    m.a.weight.data = m.a.weight.data.mul_(m.a.mask).transpose_(0, 1)
    return F.conv2d(x, m.a.weight, padding=1)


def written_by_any_true_value(m: Any, x: Tensor) -> Tensor:
    x = 1 * x
    with torch.no_grad():
        y = m.a(x)
        F.relu(x, inplace=1)  # type: ignore[arg-type]  # as nn.ReLU(1) passes it
        return torch.relu(y)


def written_by_any_true_value_in_its_place(m: Any, x: Tensor) -> Tensor:
    x = 1 * x
    with torch.no_grad():
        y = m.a(x)
        F.relu(x, 1)  # type: ignore[arg-type]  # likewise
        return torch.relu(y)


def masked_weight(m) -> Tensor:
    return m.a.weight * m.a.mask


def inner(m, x: Tensor) -> Tensor:
    return m.a(x)[:, :, 1:-1, 1:-1]


@torch.compiler.allow_in_graph
def adds_one(x: Tensor) -> Tensor:
    return x.add_(1)


def outside_inference_mode(m: Any, x: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return torch.relu(m.a(x))


def norm_outside(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.a(x)
    return F.relu(m.norm(y) + x)


PROGRAMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    name: program
    for name, program in globals().items()
    if callable(program) and getattr(program, "__annotations__", {}).get("m") in (Any, "Any")
} | {
    "logits_written": lambda m, x: in_order(
        h := m.a(x),
        flat := h.permute(0, 2, 3, 1).reshape(-1, 4),
        target := torch.zeros(flat.shape[0], dtype=torch.long),
        h.detach().mul_(2),
        F.cross_entropy(flat, target),
    ),
    "zero_filled": lambda m, x: in_order(
        zero := torch.zeros((), dtype=x.dtype),
        zero.fill_(3.0),
        F.conv2d(x, m.a.weight.masked_fill(m.a.mask == 0, zero), padding=1),
    ),
    "view_of_a_crop": lambda m, x: m.a(F.pad(x * 1, (1, 0)))[..., :-1].transpose(1, 2),
    "strided_crop": lambda m, x: m.a(x)[:, :, 1:].as_strided((2, 4, 3), (144, 36, 6), 0) * 2,
    "input_written": lambda m, x: in_order(z := 1 * x, y := m.a(z), z.data.mul_(2), m.b(y) + m.c(z)),
    "product_widened_and_written": lambda m, x: in_order(
        weight := masked_weight(m).to(torch.float32),
        weight.add_(1),
        F.conv2d(x, weight.to(x.dtype), padding=1),
    ),
    "product_negated_and_written": lambda m, x: in_order(
        weight := -masked_weight(m),
        weight.detach()[:, :, 2, 2].fill_(0.5),
        F.conv2d(x, weight.clone(), padding=1),
    ),
    "padded_map_written_through_a_view": lambda m, x: in_order(
        padded := F.pad(1 * x, (1, 1, 1, 1)), padded[:, :, 0].fill_(1), F.conv2d(padded, masked_weight(m))
    ),
    "padded_map_activated": lambda m, x: in_order(
        padded := F.pad(x - 1, (1, 1, 2, 0)),
        padded.add_(0.5),
        F.relu_(padded),
        F.conv2d(padded[:, :, :8], masked_weight(m)),
    ),
    "crop_copied_and_written": lambda m, x: in_order(
        crop := inner(m, x), copied := crop.contiguous(), copied.add_(1), torch.cat([crop * 2, copied * 1], 1)
    ),
    "crop_flattened_and_written": lambda m, x: in_order(
        crop := inner(m, x), crop.detach().flatten(2).fill_(0), crop * 2
    ),
    "crop_padded_and_written": lambda m, x: in_order(
        crop := inner(m, x), padded := F.pad(crop, (1, 1, 1, 1)), crop.add_(1), m.b(padded)
    ),
    "written_by_a_special_method": lambda m, x: in_order(
        weight := masked_weight(m), weight.__iadd__(1), F.conv2d(x, weight, padding=1)
    ),
    "written_by_a_function_in_the_graph": lambda m, x: in_order(
        weight := masked_weight(m), adds_one(weight), F.conv2d(x, weight, padding=1)
    ),
}


# Where something writes into what would be read, so that nothing is rewritten.
LEFT = frozenset(
    (
        "zeros_written zero_filled product_into_a_buffer normalised_weight normalised_weight_by_name "
        "statistics_written data_exchanged product_written_and_divided product_written_and_multiplied "
        "product_widened_and_written data_transposed product_negated_and_written product_written_and_copied "
        "product_written_and_made_the_data mask_given_data mask_made_and_written "
        "mask_written_between_product_and_copy data_written_after written_by_a_special_method "
        "data_written_through_its_source written_by_a_function_in_the_graph"
    ).split()
)


def results(model: nn.Module, x: Tensor, gradients: bool) -> list[Tensor | None]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.set_grad_enabled(gradients):
        y = model(x)
    model.zero_grad()
    if y.requires_grad:
        y.square().sum().backward()
    state = [*model.parameters(), *model.buffers()]
    return [y.detach(), x.grad, *(p.grad for p in model.parameters()), *(t.detach() for t in state)]


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    ("gradients", "last"), few([(True, False), (False, True), (True, True), (False, False)], 2)
)
def test_programs(name: str, gradients: bool, last: bool) -> None:
    plain = Programmed(PROGRAMS[name]).double()
    fast, backend = compiled_copy(plain)
    x = images().contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    for training in (True, False):
        found, expected = (results(each.train(training), x, gradients) for each in (fast, plain))
        assert found[0] is not None and expected[0] is not None
        assert found[0].stride() == expected[0].stride()
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
    assert bool(backend.report.rewritten) == (name not in LEFT), str(backend.report)


def of_convolutions(m: Any, z: Tensor) -> Tensor:
    return m.c(m.b(z))


def of_a_gate(m: Any, z: Tensor) -> Tensor:
    a, b = (z + m.b(z)).chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def add_one(x: Tensor) -> None:
    with torch.no_grad():
        x.add_(1)


WRITTEN: dict[str, Callable[[Tensor, Tensor], None]] = {
    "nothing": lambda x, z: None,
    "what was returned": lambda x, z: add_one(z),
    "what was returned, through .data": lambda x, z: add_one(z.data),
    "what was given": lambda x, z: add_one(x),
    "what was given, through .data": lambda x, z: add_one(x.data),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize(
    ("program", "last"),
    [
        (lambda m, x: torch.tanh(m.a(x)), of_convolutions),
        (lambda m, x: m.a(x), of_convolutions),
        (lambda m, x: m.a(x) + x, of_convolutions),
        (lambda m, x: m.a(m.a(x)), of_convolutions),
        (lambda m, x: m.a(x), of_a_gate),
    ],
)
def test_what_is_known_outside_is_what_pytorch_keeps(name: str, program: Any, last: Any) -> None:
    """Written between forward and backward, it changes gradients or is an error, as in plain PyTorch."""

    def gradients(model: nn.Module) -> list[Tensor] | None:
        x = 1 * images().requires_grad_()
        y, z = model(x)
        WRITTEN[name](x, z)
        try:
            y.square().sum().backward()
        except RuntimeError:  # of a tensor that was modified
            return None
        return [p.grad for p in model.parameters() if p.grad is not None]

    def returning(m: Any, x: Tensor) -> Any:
        z = program(m, x)
        return last(m, z), z

    plain = Programmed(returning).double()
    fast, backend = compiled_copy(plain)
    found, expected = gradients(fast), gradients(plain)
    assert (found is None) == (expected is None)
    for a, b in zip(found or [], expected or [], strict=True):
        torch.testing.assert_close(a, b)
    assert backend.report.rewritten


def test_within_torch_func() -> None:
    model, backend, x = Programmed(lambda m, x: m.b(m.a(x))).double(), Backend(), images()
    found = torch.compile(lambda x: torch.func.vmap(lambda image: model(image[None])[0])(x), backend=backend)(
        x
    )
    torch.testing.assert_close(found, model(x))
    assert not backend.report.rewritten and "within a transformation of torch.func" in str(backend.report)


def test_an_op_that_makes_the_mask_is_called_as_often_as_it_was() -> None:
    calls = []
    with torch.library._scoped_library("pixelcnn_fast_tests", "DEF") as library:
        library.define("mask_of(Tensor x) -> Tensor")

        def mask_of(x: Tensor) -> Tensor:
            calls.append(1)
            return (x > 0).to(x)

        library.impl("mask_of", mask_of, "CPU")
        torch.library.register_fake(
            "pixelcnn_fast_tests::mask_of", lambda x: torch.empty_like(x), lib=library
        )
        plain = Programmed(
            lambda m, x: F.conv2d(x, m.a.weight * torch.ops.pixelcnn_fast_tests.mask_of(m.a.mask), padding=1)
        ).double()
        fast, _ = compiled_copy(plain)
        torch.testing.assert_close(fast(images()), plain(images()))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.ops.pixelcnn_fast_tests.invert(x),
        lambda x: torch.ops.pixelcnn_fast_tests.invert.default(x),
        lambda x: torch.ops.pixelcnn_fast_tests.invert.default(x=x),
        lambda x: torch.ops.pixelcnn_fast_tests.invert.each([x]),
    ],
    ids=["packet", "overload", "by name", "in a list"],
)
def test_an_op_that_says_that_it_writes(call: Callable[[Tensor], None]) -> None:
    with torch.library._scoped_library("pixelcnn_fast_tests", "DEF") as library:
        library.define("invert(Tensor(a!) x) -> ()")
        library.define("invert.each(Tensor(a!)[] x) -> ()")
        library.define("invert.copy(Tensor x, bool copy) -> Tensor")  # which writes nothing

        def invert(x: Tensor | list[Tensor]) -> None:
            for each in [x] if isinstance(x, Tensor) else x:
                each.copy_(1 - each)

        for name in ("invert", "invert.each"):
            library.impl(name, invert, "CPU")
            torch.library.register_fake(f"pixelcnn_fast_tests::{name}", lambda x: None, lib=library)

        def inverted(m: Any, x: Tensor) -> Tensor:
            with torch.no_grad():
                weight = m.a.weight * m.a.mask
                call(m.a.mask)
                return F.conv2d(x, weight, padding=1)

        plain = Programmed(inverted).double()
        fast, _ = compiled_copy(plain)
        for _ in range(2):
            torch.testing.assert_close(fast(images()), plain(images()))


def test_what_runs_under_autocast_is_a_region_of_its_own() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    before = graph.call_function(torch.relu, (x,))
    entered = graph.call_function(torch.amp.autocast_mode._enter_autocast, ("cpu", None, True, None))
    within, also = (graph.call_function(torch.relu, (before,)) for _ in range(2))
    graph.call_function(torch.amp.autocast_mode._exit_autocast, (entered,))
    after = graph.call_function(torch.relu, (within,))
    regions = Regions(graph)
    assert regions.are_one(within, also) and regions.are_one(before, after)
    assert not regions.are_one(before, within) and not regions.are_one(within, after)

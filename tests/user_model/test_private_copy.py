"""A sampler is a copy: the user's module is neither touched nor read again, whatever it is wrapped in."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from pixelcnn_fast import Sampler, check_causal
from pixelcnn_fast.errors import ModelFailed, Unsupported
from pixelcnn_fast.likelihood import bits_per_dim
from pixelcnn_fast.user_model.private_copy import eagerly, exclusively, private_copy, unwrapped
from tests.needs import RUNTIMES
from tests.system.networks import ABOVE, LEFT, Masked, pixelcnn
from tests.tiers import thorough

SHAPE, LEVELS = (1, 3, 4), 7


class Normed(nn.Module):
    """Batch norm, dropout, and a mask that forward writes into the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first: nn.Module = Masked(1, 6, [*ABOVE, *LEFT])
        self.second, self.last = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, LEVELS, 1)
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.kept: dict[str, list] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.second.weight.data[:, :, 1, 2:] = 0
        self.second.weight.data[:, :, 2] = 0
        x = torch.tanh(self.second(torch.relu(self.norm(self.first(x)))))
        return 5 * self.last(self.drop(x))


def sampler(model: nn.Module) -> Sampler:
    return Sampler(model, SHAPE, levels=LEVELS, image_form="unit")


def noise(n: int = 3) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Fails if the model's modes, tensors or hooks are others afterwards."""
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_many_threads_build_samplers_of_one_model_in_training() -> None:
    model = Normed().double().train()
    expected = sampler(Normed().double().eval()).sample(3, noise=noise(), runtime="reference")
    together = threading.Barrier(8)

    def images(number: int) -> Tensor:
        together.wait()
        check_causal(model, SHAPE, levels=LEVELS, image_form="unit")
        found = sampler(model)
        return found.sample(3, noise=noise(), runtime=("reference", "auto")[number % 2])

    with left_alone(model), ThreadPoolExecutor(8) as pool:
        for found in pool.map(images, range(8)):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_a_sampler_remains_what_it_was_when_the_model_is_trained_on(runtime) -> None:
    model, labels = pixelcnn(classes=3), torch.tensor([0, 2, 1])
    built = Sampler(model, SHAPE)
    before = built.sample(3, labels, noise=noise(), runtime=runtime)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.train()
    assert torch.equal(built.sample(3, labels, noise=noise(), runtime=runtime), before)
    assert not torch.equal(Sampler(model, SHAPE).sample(3, labels, noise=noise(), runtime=runtime), before)


def test_tensors_that_are_no_leaves_are_copied() -> None:
    """The old weight_norm keeps the weight that it computed last, with its graph; others keep activations."""
    model = Normed().double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        first = nn.utils.weight_norm(nn.Conv2d(1, 6, (1, 3))).double()
    model.first = nn.Sequential(nn.ZeroPad2d((3, -1, 0, 0)), first)  # sees what is to the left
    images = torch.rand(2, *SHAPE, dtype=torch.float64)
    model.kept["activations"] = [model(images)]
    assert not first.weight.is_leaf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sampler(model)
    assert torch.equal(*(found.sample(3, noise=noise(), runtime=r) for r in ("reference", "eager")))


class Unique(Normed):
    def __deepcopy__(self, memo: dict) -> Unique:
        raise TypeError("there is only one")


BY_EIGHT_THREADS = """
import threading
from pixelcnn_fast import Sampler, models
model, failures = models.PixelCNN(1, 8, 1), []
def build():
    try:
        Sampler(model, (1, 4, 4))
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=build) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
assert not failures, failures
"""


@thorough
def test_threads_that_are_the_first_to_build_samplers() -> None:
    """PyTorch imports its compiler when it is first needed; then others find half a module."""
    subprocess.run([sys.executable, "-c", BY_EIGHT_THREADS], check=True, timeout=120)


def test_a_model_that_can_t_be_copied_is_used_by_one_thread_at_a_time() -> None:
    model, threads = Unique().double().train(), 4
    expected = sampler(Normed().double()).sample(3, noise=noise(), runtime="reference")

    def images(_: int) -> Tensor:
        return sampler(model).sample(3, noise=noise(), runtime="reference")

    with pytest.warns(
        UserWarning, match=r"^Unique can't be copied \(TypeError: there is only one\), so the module"
    ):
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(images, range(threads)))
    assert all(torch.equal(x, expected) for x in found)
    assert model.training and all(module.training for module in model.modules())


def test_a_function_that_holds_the_module_would_run_the_user_s() -> None:
    model = Normed().double().train()
    plain = model.forward
    model.forward = lambda x: 2 * plain(x)  # type: ignore[method-assign]  # as people do
    with pytest.warns(UserWarning, match="holds one of its modules") as caught:
        found = Sampler(model, SHAPE, levels=LEVELS, image_form="unit")
    assert [warning.filename for warning in caught] == [__file__]
    assert torch.equal(*(found.sample(3, noise=noise(), runtime=r) for r in ("reference", "eager")))
    assert all(module.training for module in model.modules())


def closed_over(x: object) -> Callable[[], object]:
    return lambda: x


HOLDERS: dict[str, Callable[[Normed], Callable]] = {
    "a default": lambda net: lambda x=net: x,
    "the default of a keyword": lambda net: lambda *, x=net: x,
    "a parameter": lambda net: closed_over(net.last.weight),
    "a method": lambda net: closed_over(net.last.forward),
    "an argument of a function": lambda net: closed_over(partial(print, net)),
    "a keyword of a function": lambda net: closed_over(partial(print, end=net)),
    "a list": lambda net: closed_over([0, net]),
    "a set": lambda net: closed_over({net}),
    "a dictionary": lambda net: closed_over({"net": net}),
    "an object": lambda net: closed_over(SimpleNamespace(net=net)),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_function_may_hold_a_module_in_any_way(name: str) -> None:
    model = Normed()
    model.kept["functions"] = [HOLDERS[name](model)]
    with pytest.warns(UserWarning, match="holds one of its modules"):
        assert private_copy(model) is None


def test_a_function_that_holds_no_module_does_not_matter() -> None:
    model = Normed()
    model.kept["functions"] = [
        closed_over([F.relu, 3, {"scale": torch.ones(3)}, partial(F.elu, alpha=2), nn.Conv2d])
    ]
    assert private_copy(model) is not None


def test_a_function_may_refer_to_what_is_not_there_yet() -> None:
    def function() -> object:
        return later

    model = Normed()
    model.kept["functions"] = [function]
    copied = private_copy(model)
    later = 1
    assert copied is not None and function() == later


def test_a_module_in_exclusive_use_is_put_back_as_it_was() -> None:
    model = Normed().train()
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), exclusively(model):
        assert not any(module.training for module in model.modules())
        with exclusively(model):
            raise KeyError
    assert [module.training for module in model.modules()] == modes


def test_a_part_of_a_module_in_exclusive_use_may_be_in_training() -> None:
    model = Normed().eval()
    model.norm.train()
    with exclusively(model):
        assert not model.norm.training
    assert model.norm.training and not model.training


class Adapted(Unique):
    """An adapter that is merged into the weights in eval mode, as LoRA is."""

    merged = False

    def train(self, mode: bool = True) -> Adapted:
        if mode is self.merged:
            with torch.no_grad():
                self.last.weight.add_(1.0 if not mode else -1.0)
            self.merged = not mode
        return super().train(mode)


def test_a_module_in_exclusive_use_undoes_what_its_eval_mode_did() -> None:
    model = Adapted().double().train()
    before = model.last.weight.detach().clone()
    with pytest.warns(UserWarning, match="there is only one"):
        sampler(model)
    assert not model.merged and model.training and torch.allclose(model.last.weight, before)


def disabled_train(mode: bool = True) -> bool:
    return mode


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_module_whose_train_does_nothing_is_left_in_its_mode(runtime) -> None:
    """As latent diffusion freezes its models."""
    model = Normed().double().eval()
    model.train = disabled_train  # type: ignore[method-assign,assignment]  # as people do
    images = [
        Sampler(m, SHAPE, levels=LEVELS, image_form="unit", runtime=runtime).sample(3, noise=noise())
        for m in (model, Normed().double().eval())
    ]
    assert torch.equal(*images) and not model.training


def test_what_stays_in_training_mode_is_refused_and_keeps_its_statistics() -> None:
    model = Normed().double().train()
    model.norm.train = lambda mode=True: model.norm  # type: ignore[method-assign]  # as people do
    before = copy.deepcopy(model.norm.state_dict())
    with (
        pytest.warns(UserWarning, match="holds one of its modules"),
        pytest.raises(Unsupported, match="the batch's own statistics"),
    ):
        sampler(model)
    assert all(torch.equal(before[name], x) for name, x in model.norm.state_dict().items())


class Seeding(Normed):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        return super().forward(x) + torch.rand(LEVELS, 1, 1)


def test_generators_are_left_as_they_were() -> None:
    model = Seeding().double()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    sampler(model).logits(torch.zeros(1, *SHAPE, dtype=torch.long), runtime="eager")
    check_causal(model, SHAPE, levels=LEVELS, image_form="unit")
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert all(map(np.array_equal, np.random.get_state(), before[2]))


class MadeByEval(Normed):
    """Its eval mode makes a layer, whose weights are random at first."""

    def train(self, mode: bool = True) -> MadeByEval:
        super().train(mode)
        self.made = None if mode else nn.Conv2d(1, 1, 1)
        return self


class MadeByCopies(Normed):
    def __deepcopy__(self, memo: dict) -> MadeByCopies:
        with torch.random.fork_rng():
            other = MadeByCopies()
        nn.init.normal_(torch.empty(1))
        other.load_state_dict(self.state_dict())
        return other.train(self.training)


def normed(state: dict[str, Any], mode: bool) -> MadeByParts:
    with torch.random.fork_rng():
        other = MadeByParts()
    nn.init.normal_(torch.empty(1))
    other.load_state_dict(state)
    return other.train(mode)


class MadeByParts(Normed):
    def __reduce_ex__(self, protocol: Any) -> tuple:
        return normed, (self.state_dict(), self.training)


@pytest.mark.parametrize("kind", [MadeByEval, MadeByCopies, MadeByParts])
def test_generators_are_left_as_they_were_by_what_a_model_makes(kind: Callable[[], Normed]) -> None:
    model, images = kind(), torch.zeros(1, *SHAPE, dtype=torch.uint8)
    before, own = torch.get_rng_state(), torch.Generator()
    made = sampler(model)
    for act in (
        lambda: made.log_prob(images),
        lambda: made.sample(1, generator=own),
        made.refresh,
        lambda: made.sample(1, generator=own, runtime="reference"),
        lambda: check_causal(model, SHAPE, levels=LEVELS, image_form="unit"),
        lambda: bits_per_dim(model, [images / 6], levels=LEVELS, image_form="unit"),
    ):
        act()
        assert torch.equal(torch.get_rng_state(), before)


def test_random_numbers_of_other_threads_come_once() -> None:
    """While weights are taken, and likelihoods computed, in a thread of their own."""
    model, images = pixelcnn(), torch.zeros(1, *SHAPE, dtype=torch.uint8)
    made, stop = Sampler(model, SHAPE), threading.Event()

    def refreshing() -> None:
        while not stop.is_set():
            model.conv_in.weight.data.mul_(1.0001)
            made.refresh().log_prob(images)

    thread = threading.Thread(target=refreshing)
    thread.start()
    try:
        drawn = [float(torch.rand((), dtype=torch.float64)) for _ in range(200_000)]
    finally:
        stop.set()
        thread.join()
    assert len({*drawn}) == len(drawn)


class Parametrized(Normed):
    """Its name and an attribute are PyTorch's, and it is none of its classes."""

    parametrizations = ()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_class_that_looks_like_pytorch_s_own_is_kept() -> None:
    assert sampler(Parametrized()).fingerprint() == sampler(Normed()).fingerprint()


# -- wrappers


def refuses_to_compile(*_: object) -> None:
    raise AssertionError("nothing is compiled")


def compiled(model):
    return torch.compile(model, backend=refuses_to_compile)


def compiled_inside(model):
    model.second = compiled(model.second)
    return model


def compiled_in_place(model):
    model.compile(backend=refuses_to_compile)
    return model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "compiled": compiled,
    "DataParallel, in AveragedModel": lambda model: torch.optim.swa_utils.AveragedModel(
        nn.DataParallel(model)
    ),
    "compiled, in DataParallel": lambda model: nn.DataParallel(compiled(model)),
    "a layer compiled": compiled_inside,
    "compiled in place": compiled_in_place,
}


class CompiledFunction(Normed):
    """Part of its forward is compiled, which nobody can see from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.function = compiled(F.silu)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.function(x))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_taken_off(wrap) -> None:
    plain, model = sampler(Normed().double()), wrap(Normed().double())
    with left_alone(model):
        found = sampler(model)
        assert torch.equal(found.sample(3, noise=noise()), plain.sample(3, noise=noise()))
    assert str(found.program) == str(plain.program)  # the names are those of the model itself


def test_what_is_compiled_inside_runs_eagerly_while_it_is_captured() -> None:
    model = CompiledFunction().double()
    stance = torch._dynamo.eval_frame._stance
    assert stance.stance == "default"
    assert sampler(model).sample(1).shape == (1, *SHAPE)
    assert torch._dynamo.eval_frame._stance == stance
    with eagerly, eagerly:
        assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    assert torch._dynamo.eval_frame._stance == stance


def test_a_copy_has_no_compiled_parts() -> None:
    model = compiled_inside(Normed())
    copied = private_copy(model)
    assert copied is not None and type(copied.second) is nn.Conv2d and type(model.second) is not nn.Conv2d
    assert copied.second.weight is not unwrapped(model.second).weight


# -- autocast


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_autocast_around_a_call_is_ignored(runtime) -> None:
    model, labels = pixelcnn(classes=3), torch.tensor([0, 2, 1])
    u = noise()
    expected, logits = (
        Sampler(model, SHAPE).sample(3, labels, noise=u, runtime=runtime),
        Sampler(model, SHAPE).logits(torch.zeros(3, *SHAPE, dtype=torch.uint8), labels, runtime=runtime),
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = Sampler(model, SHAPE)
        assert torch.equal(found.sample(3, labels, noise=u, runtime=runtime), expected)
        same = found.logits(torch.zeros(3, *SHAPE, dtype=torch.uint8), labels, runtime=runtime)
        assert torch.equal(same, logits)
        assert torch.is_autocast_enabled("cpu")
        known = torch.zeros(SHAPE, dtype=torch.bool)
        assert torch.equal(found.complete(expected, known, labels, noise=u, runtime=runtime), expected)
        check_causal(model, SHAPE)


# -- scripted modules


def traced(model):
    return torch.jit.trace(model, torch.zeros(2, *SHAPE, dtype=torch.float64))


def traced_inside(model):
    model.second = torch.jit.trace(model.second, torch.zeros(2, 6, *SHAPE[1:], dtype=torch.float64))
    return model


@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates torch.jit
@pytest.mark.parametrize(("wrap", "name"), [(traced, "the model"), (traced_inside, "second")])
def test_a_scripted_module_is_followed_or_refused_by_name(wrap, name) -> None:
    model = wrap(Normed().double().eval())
    try:
        found = sampler(model)
    except Unsupported as error:
        assert f"{name} is a torch.jit.ScriptModule" in str(error)
        return
    assert torch.equal(*(found.sample(3, noise=noise(), runtime=r) for r in ("reference", "eager")))


@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates torch.jit
def test_a_failure_beside_a_scripted_module_is_the_model_s() -> None:
    class Failing(Normed):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("oh")

    with pytest.raises(ModelFailed, match="KeyError: 'oh'"):
        sampler(traced_inside(Failing().double().eval()))


def test_lazy_layers_are_asked_to_be_made_first() -> None:
    with pytest.raises(ValueError, match="lazy layers.*call the model once"):
        Sampler(nn.Sequential(nn.LazyConv2d(LEVELS, 1)), SHAPE)
    with pytest.raises(ValueError, match="lazy layers.*call the model once"):
        bits_per_dim(nn.Sequential(nn.LazyConv2d(LEVELS, 1)), [torch.zeros(1, *SHAPE)])


def test_a_model_none_of_whose_parts_is_registered() -> None:
    class Guided(nn.Module):
        levels = LEVELS

        def __init__(self) -> None:
            super().__init__()
            self.net = [Normed().eval()]

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.net[0](x)

    model, images = Guided(), torch.randint(0, LEVELS, (2, *SHAPE), dtype=torch.uint8)
    made = Sampler(model, SHAPE, levels=LEVELS, image_form="unit")
    expected = model.net[0](images / (LEVELS - 1)).mul(2).detach()
    torch.testing.assert_close(made.logits(images)[:, 0].movedim(-1, 1), expected)


def test_a_graph_that_was_exported() -> None:
    plain = nn.Sequential(Masked(1, 6, [*ABOVE, *LEFT]), nn.ReLU(), nn.Conv2d(6, LEVELS, 1)).eval()
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    model = torch.export.export(plain, (torch.rand(3, *SHAPE),), dynamic_shapes=dynamic).module()
    images = torch.randint(0, LEVELS, (2, *SHAPE), dtype=torch.uint8)
    torch.testing.assert_close(sampler(model).logits(images), sampler(plain).logits(images))


def test_parameters_that_are_divided_among_processes_are_refused() -> None:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        with pytest.raises(ValueError, match="divided among processes: pass a model of whole ones"):
            fully_shard(model := Normed(), mesh=mesh)
            sampler(model)
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(
        ValueError, match="on the device meta, where tensors have no values: load its weights first"
    ):
        sampler(Normed().to("meta"))


def test_autocast_within_forward_is_refused_by_name() -> None:
    class Lower(Normed):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    with pytest.raises(Unsupported, match="autocast within forward, whose rounding is not followed"):
        sampler(Lower())
    with torch.autocast("cpu", torch.bfloat16):
        sampler(Normed())


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match="the model is a function, expected a torch.nn.Module"):
        Sampler(lambda x: x, SHAPE)  # type: ignore[arg-type]  # that is what is refused


def shared(model: Normed) -> Normed:
    """Its last layer is its own copy."""

    class Frozen(nn.Conv2d):
        def __deepcopy__(self, memo: dict) -> Frozen:
            return self

    model.last = Frozen(6, LEVELS, 1)
    return model


def sharing(tensors: Callable[[nn.Module], Iterator[Tensor]]) -> Callable[[Normed], Normed]:
    """Its norm's copies share these, to save memory."""

    class Shared(nn.BatchNorm2d):
        def __deepcopy__(self, memo: dict) -> Shared:
            copied = copy.copy(self)
            copied.__dict__ = copy.deepcopy(self.__dict__, memo | {id(x): x for x in tensors(self)})
            return copied

    def change(model: Normed) -> Normed:
        model.norm = Shared(6)
        return model

    return change


def twice(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: forward(x) * 1


def wrapped_twice(model: Normed) -> Normed:
    model.second.forward = twice(twice(model.second.forward))  # type: ignore[assignment, method-assign]  # as people do
    return model


@pytest.mark.parametrize(
    "change", [shared, sharing(nn.Module.buffers), sharing(nn.Module.parameters), wrapped_twice]
)
@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_what_a_copy_would_share_with_the_user_s_module_is_borrowed(change, runtime):
    model = change(Normed()).train()
    with pytest.warns(UserWarning, match="can't be copied"):
        Sampler(model, SHAPE, levels=LEVELS, image_form="unit", runtime=runtime).sample(1)
    assert all(x.dtype == torch.float32 for x in model.parameters())
    assert all(module.training for module in model.modules())


KEPT: dict[str, Tensor] = {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_code_keeps_outside_of_the_module_stays_in_its_dtype(dtype: torch.dtype) -> None:
    class Keeping(Normed):
        def forward(self, x: Tensor) -> Tensor:
            if str(x.dtype) not in KEPT and "ones" not in KEPT:
                KEPT["ones"] = torch.ones(SHAPE[-1]).to(x)
            return super().forward(x) + self.last.get_parameter("bias")[:, None, None] * KEPT["ones"].to(x)

    KEPT.clear()
    Sampler(Keeping().to(dtype).eval(), SHAPE, levels=LEVELS, image_form="unit")
    assert KEPT["ones"].dtype == dtype

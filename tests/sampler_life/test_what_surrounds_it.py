"""A model in a training framework: what surrounds it is no part of it, and costs nothing."""

from __future__ import annotations

import copy
import gc
import logging
import random
import tempfile
import weakref
import zipfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pixelcnn_fast import Sampler, accelerate, accelerated, check_causal, likelihood
from pixelcnn_fast.models import reference
from pixelcnn_fast.user_model import contents
from pixelcnn_fast.user_model.contents import MOST, Contents, _numbered
from pixelcnn_fast.user_model.tensors import duplicate
from tests.refresh.test_weights import trained_on
from tests.sampler_life import asserting
from tests.sampler_life.common import SHAPE, ZEROS, Around, noise, pixelcnn, silence, take


class Trainer:
    """It knows the model, data, and what is called back."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.back = model, weakref.proxy(model)
        self.data: list[object] = [[i, torch.zeros(1)] for i in range(MOST)]


class Trained(nn.Module):
    """It drops its trainer where it is copied, as Lightning's modules do."""

    levels = 256

    def __init__(self) -> None:
        super().__init__()
        self.trainer = Trainer(self)
        self.net, self.again = pixelcnn(), [weakref.proxy(self)]
        self.logger = logging.getLogger("a logger")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "trainer": None}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_module_in_a_framework_is_as_any_other(runtime: Any) -> None:
    model = Trained()
    held = Contents(model)
    assert not any(".data" in path or "manager" in path for path in [*held.settings, *held.tensors])
    with silence():
        check_causal(model, SHAPE)
        sampler = Sampler(model, SHAPE, runtime=runtime)
        model.trainer.data.append(1)
        logging.getLogger("another logger")
        images = sampler.sample(3, noise=noise())
    assert torch.equal(images, Sampler(model.net, SHAPE).sample(3, noise=noise()))
    take(model.net, trained_on(model.net))
    asserting.stale(sampler)
    asserting.follows(sampler, model.net)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_sampler_in_its_own_model_is_no_part_of_it(runtime: Any) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE, runtime=runtime)
    vars(model)["sampler"] = [sampler]
    size = len(Contents(model).settings)
    for _ in range(3):
        take(model, trained_on(model))
        with silence():
            images = sampler.refresh().sample(3, noise=noise())
    assert len(Contents(model).settings) == size and len(
        Contents(sampler._engine.model.module).tensors
    ) == len(model.state_dict())
    del vars(model)["sampler"]
    assert torch.equal(images, Sampler(model, SHAPE).sample(3, noise=noise()))


def test_the_modules_own_values_come_before_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than a walk goes through, what is far away is left out."""
    model, most = pixelcnn(), 200
    own = len(Contents(model).settings)
    monkeypatch.setattr(contents, "MOST", most)
    vars(model)["data"] = [[i, {i}] for i in range(2 * most)]
    values = Contents(model).settings
    assert own < len(values) <= own + most + 1 and "conv_out:stride" in values
    with silence():
        sampler = Sampler(model, SHAPE)
        sampler.sample(1)
    model.conv_out.register_forward_hook(lambda module, given, found: found * 2)
    asserting.stale(sampler)


def adding() -> Any:
    def scaled(model: Any, h: Tensor) -> Tensor:
        for found in (model.shift, model.gain):
            if found is not None:
                h = h * (1 + found * getattr(found, "factor", 1.0))
        return h

    model = Around(scaled)
    model.register_buffer("shift", None)
    model.register_parameter("gain", None)
    return model


def shifted(model: Any) -> None:
    model.shift = torch.linspace(1, 2, 256)


def with_a_gain(model: Any) -> None:
    model.gain = nn.Parameter(torch.linspace(1, 2, 256))


@pytest.mark.parametrize("runtime", ["auto", "reference"])
@pytest.mark.parametrize("change", [shifted, with_a_gain])
def test_none_that_becomes_a_tensor(change: Callable[[Any], None], runtime: Any) -> None:
    model = adding()
    sampler = Sampler(model, SHAPE, runtime=runtime)
    before = sampler.fingerprint()
    change(model)
    asserting.stale(sampler)
    asserting.built_anew(sampler)
    assert before != sampler.fingerprint() == Sampler(model, SHAPE, runtime=runtime).fingerprint()
    asserting.draws_as_new(sampler, model)


def test_attributes_of_a_tensor_are_held() -> None:
    model = adding()
    shifted(model)
    vars(model.shift)["factor"] = 1.0
    sampler = Sampler(model, SHAPE)
    vars(model.shift)["factor"] = 3.0
    asserting.stale(sampler)


def made_at_its_first_call(model: Any, h: Tensor) -> Tensor:
    if model.made is None:
        model.made = torch.ones(256)
    return h * model.made


def lazy() -> Any:
    return Around(made_at_its_first_call, made=None, steps=0)


def test_what_is_made_at_the_first_call_and_changes_later() -> None:
    model = lazy()
    sampler = Sampler(model, SHAPE)
    model(ZEROS)
    with silence():
        sampler.refresh().sample(1)
    model.made += torch.linspace(1, 2, 256)
    asserting.stale(sampler)
    asserting.built_anew(sampler)
    asserting.draws_as_new(sampler, model)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_whether_weights_are_trained_makes_no_other_model(runtime: Any) -> None:
    """By which PyTorch decides how it multiplies matrices."""

    a, b = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))
    model = Around(lambda model, h: h * (model.a.expand(3, 8, 4) @ model.b).mean(), a=a, b=b)
    sampler = Sampler(model, SHAPE, runtime=runtime)
    model.requires_grad_(False)
    with silence():
        sampler.sample(1)
        sampler.refresh()
    assert sampler.fingerprint() == Sampler(model, SHAPE, runtime=runtime).fingerprint()


def test_another_name_of_a_weight_is_no_change() -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    model.alias = model.conv_in.weight
    with silence():
        sampler.sample(1)
        sampler.refresh()


def test_copies_of_an_accelerated_module_with_a_state_of_its_own_are_plain() -> None:
    model = Trained()
    images = torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
    accelerate(model)(images)
    average = AveragedModel(model)
    for p in average.parameters():
        p.data.mul_(1.5)
    plain = pixelcnn()
    plain.load_state_dict(average.module.get_submodule("net").state_dict())
    assert torch.equal(average.eval()(images), plain.eval()(images))
    compiled = Trained()
    compiled.compile(backend="eager")
    sampler = Sampler(compiled, SHAPE)
    take(compiled.net, trained_on(compiled.net))
    assert torch.equal(
        sampler.refresh().sample(3, noise=noise(), runtime="reference"),
        Sampler(compiled.net, SHAPE).sample(3, noise=noise()),
    )


def test_an_accelerated_model_in_eval_mode_scores_images_itself() -> None:
    """As fast as it is; in train mode, a plain copy of it does, in eval mode."""
    plain = nn.Sequential(reference.MaskedConv2d(1, 8, 5, "A"), nn.Dropout(), nn.Conv2d(8, 256, 1)).eval()
    fast = accelerate(copy.deepcopy(plain))
    images = torch.randint(0, 256, (2, *SHAPE))
    expected = Sampler(plain, SHAPE, image_form="unit").log_prob(images)
    expected.sum().backward()
    sampler = Sampler(fast.train(), SHAPE, image_form="unit")
    torch.testing.assert_close(sampler.log_prob(images), expected)
    assert "conv2d" not in str(accelerated(fast)), "it was not run"
    fast.eval()
    log_p = sampler.log_prob(images)
    assert "conv2d" in str(accelerated(fast))
    torch.testing.assert_close(log_p, expected)
    log_p.sum().backward()
    for got, wanted in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_objects_are_walked_by_what_they_are_copied_with() -> None:
    model = pixelcnn()
    vars(model)["generator"] = random.Random(0)
    before = Contents(model).settings
    assert Contents(duplicate(model)).settings == before == Contents(copy.deepcopy(model)).settings
    vars(model)["generator"].random()
    assert Contents(model).settings != before


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_what_a_hook_holds_is_the_users_and_stays_as_it_is(runtime: Any) -> None:
    model, probe, seen = lazy(), nn.Linear(1, 1), list[Tensor]()
    model.register_forward_hook(lambda module, given, found: seen.append(probe(found[:, 0, :1, :1, 0])))
    before = {name: x.detach().clone() for name, x in [*model.named_parameters(), *probe.named_parameters()]}
    check_causal(model, SHAPE)
    sampler = Sampler(model, SHAPE, runtime=runtime)
    model.net.conv_in.register_forward_hook(
        lambda module, given, found: seen.append(model.net.conv_in.weight.norm())
    )
    model(ZEROS)
    model.steps += 1
    with silence():
        sampler.sample(1)
        sampler.refresh()
        sampler.fingerprint()
    for name, x in [*model.named_parameters(), *probe.named_parameters()]:
        assert torch.equal(x, before[name]) and x.requires_grad


def test_files_of_a_model_stay_open(tmp_path: Path) -> None:
    """Copies share them, and with them what would close them when it dies."""
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("one", "two")
    model = pixelcnn()
    vars(model)["data"] = {"zip": zipfile.ZipFile(path), "temporary": tempfile.NamedTemporaryFile()}
    with silence():
        sampler = Sampler(model, SHAPE)
        sampler.refresh().sample(1)
    del sampler
    gc.collect()
    held = vars(model)["data"]
    assert held["zip"].read("one") == b"two" and Path(held["temporary"].name).exists()
    held["zip"].close()
    held["temporary"].close()


def test_a_setting_beside_large_data_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MOST", 2000)
    model = lazy()
    vars(model)["files"] = [Path(str(i)) for i in range(2000)]
    vars(model)["settings"] = SimpleNamespace(shift=1.0)
    model.register_forward_hook(lambda module, given, found: found * vars(module)["settings"].shift)
    sampler = Sampler(model, SHAPE)
    vars(model)["settings"].shift = 2.0
    asserting.stale(sampler)


def test_a_queue_that_is_filled_meanwhile() -> None:
    """It is taken as it is at one moment."""
    queue = deque([{i} for i in range(3)])
    names = _numbered(queue, "[]")
    queue.append({3})
    assert [name for name, _ in names] == ["[0]", "[1]", "[2]"]


def test_a_copy_that_knows_nothing_of_the_memo_still_gives_gradients() -> None:
    class Own(Around):
        def __deepcopy__(self, memo: dict) -> Own:
            other = Own(self.forward_of)
            other.load_state_dict(self.state_dict())
            return other

        def __len__(self) -> int:  # it is false
            return 0

    model, images = Own(lambda model, h: h), torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
    sampler = Sampler(model, SHAPE)
    state = torch.random.get_rng_state()
    sampler.refresh()
    assert torch.equal(state, torch.random.get_rng_state()) and model.net.conv_in.weight.requires_grad
    found = sampler.log_prob(images)
    torch.testing.assert_close(found, -likelihood.nll(model, images))
    gradients = (
        torch.autograd.grad(x.sum(), model.net.conv_in.weight)[0]
        for x in (found, -likelihood.nll(model, images))
    )
    torch.testing.assert_close(*gradients)

"""What the user calls: arguments, defaults, refusals."""

import inspect
import os
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

import pixelcnn_fast
from pixelcnn_fast import Sampler
from pixelcnn_fast.call import CallSettings, SamplingArguments, _checked_noise, _drawn_noise
from pixelcnn_fast.engine import LARGEST_BATCH
from pixelcnn_fast.errors import ModelFailed, NonFiniteLogits, UnknownLayout, Unsupported
from pixelcnn_fast.heads import SamplingOptions
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.job import Job, Runtime
from tests.copies import pretended_devices
from tests.system.agreement import assert_runtimes_agree
from tests.system.networks import ABOVE, LEFT, Masked, Written, pixelcnn, two_stacks
from tests.tiers import thorough


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(pixelcnn(channels=2, classes=3), (2, 4, 4))


LABELS = torch.tensor([0, 2])


def test_zero_images_are_an_empty_result(sampler):
    for runtime in ("reference", "eager", "auto"):
        images = sampler.sample(0, torch.zeros(0, dtype=torch.long), runtime=runtime)
        assert images.shape == (0, 2, 4, 4) and images.dtype == torch.uint8
    assert (
        sampler.logits(torch.zeros(0, 2, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.long)).numel()
        == 0
    )


def test_a_generator_makes_a_run_repeatable(sampler):
    first, again, other = (
        sampler.sample(2, LABELS, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    u = torch.rand(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sampler.sample(2, LABELS, noise=u), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n=-1, labels=LABELS), "negative"),
        (dict(n=2), "conditional"),
        (dict(n=2, labels=torch.tensor([0, 3])), "labels span"),
        (dict(n=2, labels=torch.tensor([-1, 0])), "labels span"),
        (dict(n=2, labels=torch.tensor([0])), "expected integers"),
        (dict(n=2, labels=torch.tensor([0.0, 1.0])), "expected integers"),
        (dict(n=2, labels=LABELS, temperature=-1.0), "temperature"),
        (dict(n=2, labels=LABELS, temperature=float("nan")), "temperature"),
        (dict(n=2, labels=LABELS, batch_size=0), "batch_size"),
        (dict(n=2, labels=LABELS, runtime="gpu"), "runtime"),
        (dict(n=2, labels=LABELS, noise=torch.rand(2, 2, 4, 5)), "noise"),
        (dict(n=2, labels=LABELS, noise=torch.ones(2, 2, 4, 4)), r"\[0, 1\)"),
        (dict(n=2, labels=LABELS, noise=torch.full((2, 2, 4, 4), float("nan"))), "NaN"),
        (dict(n=2, labels=LABELS, noise=torch.zeros(2, 2, 4, 4, dtype=torch.long)), "noise"),
    ],
)
def test_bad_arguments_are_refused(sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler.sample(**arguments)


@pytest.mark.parametrize(
    ("images", "known", "message"),
    [
        (torch.zeros(2, 2, 4, 5, dtype=torch.uint8), torch.ones(4, 5, dtype=torch.bool), "shape"),
        (torch.zeros(2, 2, 4, 4), torch.ones(4, 4, dtype=torch.bool), "integer levels"),
        (torch.ones(2, 2, 4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool), "integer levels"),
        (torch.full((2, 2, 4, 4), 256), torch.ones(4, 4, dtype=torch.bool), "levels span"),
        (
            torch.full((2, 2, 4, 4), -1),
            torch.zeros(4, 4, dtype=torch.bool),
            "levels span .* not known, too: 0 will",
        ),
        (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), torch.ones(4, 4), "torch.bool"),
        (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), torch.ones(3, 4, dtype=torch.bool), "broadcast"),
    ],
)
def test_bad_images_are_refused(sampler, images, known, message):
    with pytest.raises(ValueError, match=message):
        sampler.complete(images, known, LABELS)


@pytest.mark.parametrize("shape", [(1, 0, 4), (1, 4, -4), (1, 4, 4.0), (1, 4), (1, 1, 4, 4), 4, {1, 2, 3}])
def test_bad_shapes_are_refused(shape):
    message = re.escape(f"shape is {shape}, expected (C, H, W), all positive integers")
    with pytest.raises(ValueError, match=message):
        Sampler(pixelcnn(), shape)


def test_bad_construction_is_refused():
    model = pixelcnn()
    with pytest.raises(ValueError, match="precision is 'int4', expected one of 'same', 'bf16'"):
        Sampler(model, (1, 4, 4), precision="int4")  # type: ignore[arg-type]  # there is no such precision
    with pytest.raises(TypeError, match="^Sampler: weights= is called precision= now$"):
        Sampler(model, (1, 4, 4), weights="bf16")  # type: ignore[call-arg]  # its old name
    for levels in (0, 1, 257, 512):
        with pytest.raises(ValueError, match=f"levels is {levels}: expected .*2 or more"):
            Sampler(model, (1, 4, 4), levels=levels)
    with pytest.raises(ValueError, match="for 32 levels"):
        Sampler(model, (1, 4, 4), levels=32)
    with pytest.raises(ValueError, match="image_form is 'grey', expected one of 'uint8', 'int64'"):
        Sampler(model, (1, 4, 4), image_form="grey")  # type: ignore[arg-type]  # there is no such form
    with pytest.raises(ValueError, match="no parameters of real numbers"):
        Sampler(torch.nn.Flatten(), (1, 4, 4))
    with pytest.raises(ValueError, match="differ in dtype"):
        model.conv_out.double()
        Sampler(model, (1, 4, 4))


def test_labels_for_a_model_without_them_are_refused():
    with pytest.raises(ValueError, match="without labels"):
        Sampler(pixelcnn(), (1, 4, 4)).sample(1, torch.tensor([0]))


@pytest.mark.parametrize(
    ("built_for", "dtype"),
    [("auto", torch.float32), ("reference", torch.float32), ("reference", torch.float64)],
)
def test_the_model_is_left_as_it_was(built_for, dtype):
    model = pixelcnn().to(dtype).train()
    model.tail.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Sampler(model, (1, 4, 4), runtime=built_for).sample(2, runtime="reference")
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(x, after[name]) and x.dtype == after[name].dtype for name, x in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("form", ["unit", "centred", "levels"])
def test_models_that_take_floating_point_images(form):
    inner = two_stacks(n_classes=None).double()
    factor, shift = {"unit": (255, 0), "centred": (127.5, 127.5), "levels": (1, 0)}[form]

    def forward(net, x):
        assert x.dtype == torch.float64
        return net.inner(x * factor + shift)

    u = torch.rand(3, 2, 5, 4, dtype=torch.float64)
    sampler = Sampler(Written(forward, inner=inner), (2, 5, 4), image_form=form)
    expected = Sampler(inner, (2, 5, 4)).sample(3, noise=u, runtime="reference")
    assert torch.equal(assert_runtimes_agree(sampler, u=u), expected)


class Prior(torch.nn.Module):
    """A prior over codes, such as those of a quantising autoencoder: many levels, embedded."""

    def __init__(self, levels):
        super().__init__()
        self.embedding = torch.nn.Embedding(levels, 6)
        self.conv, self.out = Masked(6, 9, [*ABOVE, *LEFT]), torch.nn.Conv2d(9, levels, 1)

    def forward(self, codes):
        codes = codes.reshape(-1, *codes.shape[-2:])
        x = self.embedding(codes.flatten().long()).view(*codes.shape, 6).permute(0, 3, 1, 2)
        return 3 * self.out(torch.tanh(self.conv(x)))


@pytest.mark.parametrize("form", ["int64", "codes", "levels", "uint8"])
def test_models_that_take_codes(form):
    levels = 200 if form == "uint8" else 512
    sampler = Sampler(Prior(levels).double(), (1, 4, 5), levels=levels, image_form=form)
    assert assert_runtimes_agree(sampler).max() > 100


def test_codes_come_in_the_form_in_which_they_are_taken():
    sampler = Sampler(Prior(512), (1, 4, 5), levels=512, image_form="codes")
    codes, log_p = sampler.sample(3, noise=torch.rand(3, 1, 4, 5, dtype=torch.float64), log_probability=True)
    assert codes.dtype == torch.int64 and codes.shape == (3, 4, 5)
    assert torch.equal(sampler.logits(codes), sampler.logits(codes[:, None]))
    torch.testing.assert_close(sampler.log_prob(codes).double(), log_p, rtol=1e-5, atol=1e-4)
    known = torch.rand(3, 4, 5) < 0.5
    completed = sampler.complete(codes, known)
    assert completed.shape == codes.shape and torch.equal(completed[known], codes[known])
    for mask in (known[0], known[:, None]):  # one for all images, and with an axis of channels
        completed, kept = sampler.complete(codes, mask), mask.expand(3, 1, 4, 5)[:, 0]
        assert torch.equal(completed[kept], codes[kept]) and not torch.equal(completed, codes)
    with pytest.raises(ValueError, match=r"shape \[3, 4, 6\], expected \[n, 4, 5\]"):
        sampler.logits(torch.zeros(3, 4, 6, dtype=torch.long))


def test_codes_are_not_taken_for_another_form():
    with pytest.raises(ValueError, match="int64"):
        Sampler(Prior(512), (1, 4, 5), levels=512)
    with pytest.raises(ValueError, match="one channel"):
        Sampler(Prior(8), (2, 4, 5), levels=8, image_form="codes")
    with pytest.raises(Unsupported, match="it rounds"):
        Sampler(Prior(8), (1, 4, 5), levels=8, image_form="unit")  # 0 and 1 are not the levels


def test_a_model_that_raises_says_what_it_was_given():
    class Strict(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = Masked(1, 8, [*ABOVE, *LEFT])

        def forward(self, x, y):
            return self.conv(x)

    with pytest.raises(
        ModelFailed, match=r"(?s)raised RuntimeError.*torch.uint8 \[2, 1, 4, 5\], labels \[2\].*image_form="
    ):
        Sampler(Strict(), (1, 4, 5), levels=8)


def test_a_model_that_takes_no_uint8_is_told_what_to_say():
    model = torch.nn.Sequential(Masked(2, 10, [*ABOVE, *LEFT]))
    with pytest.raises(ModelFailed) as failed:
        Sampler(model, (2, 4, 5), levels=5)
    code = [line for line in str(failed.value).split("\n") if line.startswith("  Sampler(")]
    assert [line.partition("image_form=")[2].split(")")[0] for line in code] == [
        "'unit'",
        "'centred'",
        "'levels'",
        "'int64'",
    ]
    assert "0...1" in code[0] and "-1...1" in code[1] and "0...L-1" in code[2]
    for line in code[:3]:
        with pytest.raises(UnknownLayout, match="several ways|is expected to be"):  # it is run now
            exec(line.strip(), {"Sampler": Sampler, "model": model})


def test_the_library_s_own_errors_are_not_the_model_s():
    def refuses(net, x):
        raise Unsupported("conv: this is the library's own")

    model = Written(refuses, conv=Masked(1, 8, [*ABOVE, *LEFT]))
    with pytest.raises(Unsupported, match="^conv: this is the library's own; runtime="):
        Sampler(model, (1, 4, 5), levels=8)


def test_half_precision_models_are_served_by_eager_and_cpu_says_why_not():
    model = pixelcnn().bfloat16()
    sampler = Sampler(model, (1, 3, 3))
    assert sampler.sample(2).shape == (2, 1, 3, 3)
    with pytest.raises(RuntimeError, match="bfloat16|compiled"):
        sampler.sample(2, runtime="cpu")


def test_auto_says_why_a_gpu_is_not_used_well(monkeypatch):
    """On a GPU, the runtime 'eager' takes what 'cuda' refuses."""
    sampler = Sampler(pixelcnn(channels=2), (2, 4, 4))
    program = replace(sampler._engine.require_compiled().program, device=torch.device("cuda"))
    engine = replace(
        sampler._engine, compiled=replace(sampler._engine.require_compiled(), program=program), _runtimes={}
    )
    monkeypatch.setattr("pixelcnn_fast.engine.why_not_cpu", lambda *_: "it is on a GPU")
    monkeypatch.setattr("pixelcnn_fast.engine.why_not_cuda", lambda *_: "the model has a recurrence")
    with pytest.warns(UserWarning, match="'auto' takes the runtime 'eager'.*the model has a recurrence"):
        assert isinstance(engine.prepared("auto")[0], EagerRuntime)


def test_more_than_256_levels():
    def logits(net, x):
        n, _, height, width = x.shape
        return net.conv(x / 300).view(n, 1, 300, height, width).permute(0, 1, 3, 4, 2) * 3

    model = Written(logits, conv=MaskedConv2d(1, 300, 3, "A")).double()
    sampler = Sampler(model, (1, 5, 5), levels=300, image_form="levels")
    u = torch.rand(4, 1, 5, 5, dtype=torch.float64)
    images = sampler.sample(4, noise=u)
    assert images.dtype == torch.int32 and images.max() > 255
    assert torch.equal(images, sampler.sample(4, noise=u, runtime="reference"))


def test_the_listing_names_layers_taps_and_costs(sampler):
    text = str(sampler.program)
    assert text.startswith("program of runtime ")
    for expected in (
        "blocks.0.conv1",
        "MFLOP in the row phase",
        "MB of weights",
        "(-1, -1..+1)",
        "add_condition",
    ):
        assert expected in text


def test_the_listing_names_the_runtime_that_auto_was_set_to():
    sampler = Sampler(pixelcnn(), (1, 4, 4), runtime="eager")
    assert str(sampler.program).startswith("program of runtime 'eager', which 'auto' stands for here\n")


@pytest.mark.parametrize("runtime", ["reference", "eager", "auto"])
def test_logits_that_are_not_finite_name_their_image_among_all(runtime):
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = Masked(1, 8, [*ABOVE, *LEFT])

        def forward(self, x, condition):
            return self.conv(x.float()) + condition[:, :, None, None]

    sampler, condition = (
        Sampler(Shifted(), (1, 5, 5), levels=8, conditional=False, condition_shape=(8,)),
        torch.zeros(5, 8),
    )
    condition[3] = float("nan")
    with pytest.raises(NonFiniteLogits) as caught:
        sampler.sample(5, condition=condition, batch_size=2, runtime=runtime)
    assert caught.value.location == (3, 0, 0, 0)


def test_a_model_that_is_not_finite_is_refused_at_once():
    model = pixelcnn()
    next(model.parameters()).data[0] = float("nan")
    with pytest.raises(NonFiniteLogits):
        Sampler(model, (1, 5, 5))


# -- what sample and complete share

SHARED = {
    **asdict(SamplingOptions()),
    "labels": None,
    "generator": None,
    "noise": None,
    "batch_size": None,
    "runtime": "auto",
    "progress": False,
    "log_probability": False,
    "condition": None,
    "device": None,
}


@pytest.mark.parametrize(
    ("method", "own"), [("sample", ["self", "n"]), ("complete", ["self", "images", "known"])]
)
def test_every_argument_is_shown(method, own):
    function = getattr(Sampler, method)
    parameters = inspect.signature(function).parameters
    assert {name: p.default for name, p in parameters.items() if name not in own} == SHARED
    assert list(parameters)[: len(own) + 4] == [*own, "labels", "temperature", "generator", "noise"]
    shown = pydoc.render_doc(function)
    assert all(f"{name}: " in shown.partition(" -> ")[0] for name in SHARED)


def test_type_checkers_know_every_keyword():
    expected = {**get_type_hints(SamplingOptions), **get_type_hints(CallSettings)}
    for own in (
        "labels",
        "temperature",
        "generator",
        "noise",
        "log_probability",
    ):  # which each method spells out
        del expected[own]
    assert get_type_hints(SamplingArguments) == expected


def test_the_first_arguments_may_be_given_by_position(sampler):
    u = torch.rand(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = torch.Generator().manual_seed(2)
    expected = sampler.sample(2, labels=LABELS, temperature=0.5, noise=u)
    assert torch.equal(sampler.sample(2, LABELS, 0.5, other, u), expected)
    again = torch.Generator().manual_seed(1)
    assert torch.equal(sampler.sample(2, LABELS, 0.5, again), expected)
    known = torch.eye(4, dtype=torch.bool)
    kept = sampler.complete(expected, known, labels=LABELS, temperature=0.7, noise=1 - u)
    assert torch.equal(sampler.complete(expected, known, LABELS, 0.7, other, 1 - u), kept)


@pytest.mark.parametrize("method", ["sample", "complete"])
def test_an_unknown_keyword_is_named(sampler, method):
    with pytest.raises(
        TypeError, match=rf"^Sampler\.{method}\(\) got an unexpected keyword argument 'top_q'$"
    ):
        getattr(sampler, method)(*[None] * (2 if method == "complete" else 1), labels=LABELS, top_q=0.9)


def test_log_probabilities_come_with_the_images(sampler):
    u = torch.rand(2, 2, 4, 4, dtype=torch.float64)
    images, found = sampler.sample(2, LABELS, noise=u, log_probability=True, batch_size=1)
    assert torch.equal(images, sampler.sample(2, LABELS, noise=u)) and found.shape == (2,)
    completed, found = sampler.complete(
        images, torch.ones(4, 4, dtype=torch.bool), LABELS, log_probability=True
    )
    assert torch.equal(completed, images) and found.tolist() == [0, 0]


SNIPPET = """
import torch
from torch import Tensor
from pixelcnn_fast import Sampler

def f(sampler: Sampler, flag: bool, x: Tensor, generator: torch.Generator) -> None:
    reveal_type(sampler.sample(2))
    reveal_type(sampler.sample(2, None, 0.9, generator, x))
    reveal_type(sampler.sample(2, log_probability=True, top_k=3, runtime="cpu"))
    reveal_type(sampler.complete(x, x, temperature=0.5, condition=x))
    reveal_type(sampler.complete(x, x, x, log_probability=True))
    reveal_type(sampler.complete(x, x, log_probability=flag))
    sampler.sample(2, colour=True)
    sampler.sample(2, runtime="gpu")
    sampler.complete(x, x, top_k="many")
    Sampler(torch.nn.Identity(), (1, 2, 3), precision="int4")
    Sampler(torch.nn.Identity(), (1, 2, 3), image_form="grey")
"""


@thorough
def test_types_are_honest(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "snippet.py").write_text(SNIPPET)
    root = Path(pixelcnn_fast.__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir", tmp_path / "cache"]
    command += ["--config-file", os.devnull, "--hide-error-context", tmp_path / "snippet.py"]
    found = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, "MYPYPATH": str(root)}
    )
    tensor = "torch._tensor.Tensor"
    pair = f"tuple[{tensor}, {tensor}]"
    revealed = re.findall(r'Revealed type is "(.*)"', found.stdout)
    assert revealed == [tensor, tensor, pair, tensor, pair, f"{tensor} | {pair}"], found.stdout + found.stderr
    first = SNIPPET.split("\n").index("    sampler.sample(2, colour=True)") + 1
    refused = {int(line) for line in re.findall(r"snippet\.py:(\d+): error", found.stdout)}
    assert refused == set(range(first, first + 5)), found.stdout


@pytest.mark.parametrize("level", [2**32 + 3, -1, 256])
def test_levels_out_of_range_do_not_wrap(level):
    sampler = Sampler(pixelcnn(), (1, 4, 4))
    with pytest.raises(ValueError, match="levels span"):
        sampler.logits(torch.full((1, 1, 4, 4), level))


def test_arrays_and_lists_are_taken_for_tensors():
    sampler: Any
    sampler, known = Sampler(pixelcnn(), (1, 4, 4)), np.ones((4, 4), bool)
    noise, images = np.full((1, 1, 4, 4), 0.5), np.full((1, 1, 4, 4), 7)
    expected = sampler.sample(1, noise=torch.from_numpy(noise))
    assert torch.equal(sampler.sample(1, noise=noise), expected)
    assert (sampler.complete(images.tolist(), known) == 7).all()
    assert torch.equal(sampler.sample(np.int64(1), noise=noise), expected)
    plain = dict(temperature=0.5, top_k=3, top_p=0.5)
    numbers = dict(temperature=np.float32(0.5), top_k=np.int64(3), top_p=np.float32(0.5))
    assert torch.equal(*(sampler.sample(1, noise=noise, **options) for options in (plain, numbers)))
    for n in (2.0, True, None):
        with pytest.raises(ValueError, match=f"n is {n}: the number of images must be an integer"):
            sampler.sample(n)
    with pytest.raises(ValueError, match="temperature is '1', expected a number"):
        sampler.sample(1, temperature="1")
    with pytest.raises(ValueError, match="generator is a int, expected a torch.Generator"):
        sampler.sample(1, generator=3)


# -- where results, noise and generators are

ABSENT = f"cuda:{torch.cuda.device_count()}"


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_results_on_the_cpu_are_the_default_s(sampler, device):
    u = torch.rand(2, 2, 4, 4, dtype=torch.float64)
    expected = sampler.sample(2, LABELS, noise=u, log_probability=True)
    found = sampler.sample(2, LABELS, noise=u, log_probability=True, device=device)
    assert all(map(torch.equal, found, expected)) and found[0].device.type == "cpu"
    known = torch.eye(4, dtype=torch.bool)
    kept = sampler.complete(expected[0], known, LABELS, noise=u)
    assert torch.equal(sampler.complete(expected[0], known, LABELS, noise=u, device=device), kept)
    logits = sampler.logits(kept, LABELS)
    assert torch.equal(sampler.logits(kept, LABELS, device=device), logits)


@pytest.mark.parametrize(
    ("device", "why"),
    [(ABSENT, "."), ("meta", "its tensors have no values"), ("gpu", "gpu"), (torch.device(ABSENT), ".")],
)
def test_a_device_that_can_t_hold_results_is_refused_before_any_work(sampler, device, why, monkeypatch):
    def no_work(*_: object) -> None:
        raise AssertionError("this is work")

    monkeypatch.setattr("pixelcnn_fast.sampler.run", no_work)
    images, known = torch.zeros(2, 2, 4, 4, dtype=torch.uint8), torch.eye(4, dtype=torch.bool)
    for call in (
        lambda: sampler.sample(2, LABELS, device=device),
        lambda: sampler.complete(images, known, LABELS, device=device),
        lambda: sampler.logits(images, LABELS, device=device),
    ):
        with pytest.raises(ValueError, match=f"device is '{device}'.*: .*{why}.*without device=.*on the CPU"):
            call()


class OnMeta(torch.Generator):
    """In place of one on a device without float64, such as MPS."""

    device = torch.device("meta")


def test_noise_and_generators_on_devices_that_won_t_do_are_refused(sampler):
    with pytest.raises(
        ValueError, match="noise is on 'meta'.*its tensors have no values; pass it on the CPU"
    ):
        sampler.sample(2, LABELS, noise=torch.rand(2, 2, 4, 4, device="meta"))
    with pytest.raises(ValueError, match="generator is on 'meta'.*; pass one on the CPU"):
        sampler.sample(2, LABELS, generator=OnMeta())


def test_noise_stays_where_it_is_given_or_drawn(sampler):
    """Here, the GPU need not be there."""
    gpu = torch.device("cuda:0")

    class OnGpu(torch.Generator):
        device = gpu

    with pretended_devices() as copies:
        drawn = _drawn_noise(torch.Size((2, 2, 4, 4)), OnGpu())
        none = torch.zeros(0, 2, 4, 4, device=gpu)  # has no values to look at
        given = _checked_noise(none, none.shape)
    assert drawn.device == given.device == gpu and not copies.made


def test_a_bar_counts_the_rows_of_all_images(sampler, capsys) -> None:
    images = sampler.sample(3, LABELS[[0, 1, 0]], batch_size=2, progress=True)
    assert " 12/12 " in capsys.readouterr().err
    sampler.complete(images[:2], torch.eye(4, dtype=torch.bool), LABELS, progress=True)
    assert " 8/8 " in capsys.readouterr().err
    sampler.sample(2, LABELS)
    assert capsys.readouterr().err == ""


class Recording(Runtime):
    """It draws nothing, and writes down where it should."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, job: Job) -> None:
        raise AssertionError("only run_each is used")

    def run_each(self, jobs: Iterable[Job]) -> Iterator[Job]:
        self.jobs = list(jobs)
        yield from self.jobs


@pytest.mark.parametrize("model_on", ["cpu", "cuda:0"])
@pytest.mark.parametrize(
    ("device", "results_on"), [(None, "cpu"), ("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_images_are_drawn_with_the_model_unless_they_are_to_be_on_the_cpu(
    model_on, device, results_on, monkeypatch
):
    """Here, the GPU need not be there."""
    sampler, recording = Sampler(pixelcnn(), (1, 4, 4)), Recording()
    monkeypatch.setattr(Sampler, "device", torch.device(model_on))
    monkeypatch.setitem(sampler._engine._runtimes, "eager", recording)
    with pretended_devices() as copies:
        images, scores = sampler.sample(5, runtime="eager", batch_size=3, device=device, log_probability=True)
    assert images.device == scores.device == torch.device(results_on)
    drawn_on = "cpu" if results_on == "cpu" else model_on
    for job, n in zip(recording.jobs, (3, 2), strict=True):
        assert job.log_probability is not None
        assert job.values.device == job.log_probability.device == torch.device(drawn_on)
        assert job.values.shape[0] == n and job.noise.device.type == "cpu"
    leaves_the_host = drawn_on == "cpu" != results_on
    assert [copy.elements for copy in copies.made] == ([5 * 16, 5] if leaves_the_host else [])


@pytest.mark.parametrize("method", ["complete", "logits"])
def test_given_images_on_a_gpu_stay_there(method, monkeypatch):
    sampler, recording = Sampler(pixelcnn(), (1, 4, 4)), Recording()
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(Sampler, "device", gpu)
    monkeypatch.setattr("pixelcnn_fast.heads.values.check_levels", lambda *_: None)  # it reads values
    monkeypatch.setattr("pixelcnn_fast.call._checked_noise", lambda noise, *_: noise)  # the same
    monkeypatch.setitem(sampler._engine._runtimes, "eager", recording)
    monkeypatch.setitem(LARGEST_BATCH, Recording, 2)
    with pretended_devices() as copies:
        images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8, device=gpu)
        if method == "complete":
            known, u = torch.ones(4, 4, dtype=torch.bool, device=gpu), torch.zeros(2, 1, 4, 4, device=gpu)
            found = sampler.complete(images, known, noise=u, runtime="eager", device=gpu)
        else:
            found = sampler.logits(images, runtime="eager", device=gpu)
    assert found.device == gpu and not copies.made
    (job,) = recording.jobs
    assert job.known is not None and job.values.device == job.known.device == job.noise.device == gpu

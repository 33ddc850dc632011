"""From a model to a compiled one: what is refused on the way, and that the check against the model can fail."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pixelcnn_fast import compiler
from pixelcnn_fast.capture.capture import capture
from pixelcnn_fast.check.against_model import check_program, expectations
from pixelcnn_fast.check.tolerance import check_error, check_finite, rounding_unit
from pixelcnn_fast.compiler import capture_model, compile_model
from pixelcnn_fast.errors import CaptureMismatch, InvalidProgram, NonFiniteLogits, NotCausal, Unsupported
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.program.instructions import Convolution
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.runtimes import RUNTIMES
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.system.networks import Written, pixelcnn
from tests.triton_device import float32_precision

SHAPE = (1, 5, 4)


def wrapped(**arguments) -> WrappedModel:
    return WrappedModel(pixelcnn(**arguments), SHAPE)


def test_a_model_becomes_a_phased_program_with_its_head_resolved():
    model = wrapped()
    found = compile_model(model)
    assert isinstance(found.program, PhasedProgram) and found.program.wavefront is not None
    assert found.program.shape == SHAPE and model.head == Categorical(256, "N,C,H,W,L")
    assert found.precision == "same" and not found.normalised
    assert "causal program for 1x5x4 images" in str(found.listing("cpu"))


def test_a_closing_softmax_is_left_out_and_reported():
    conv = MaskedConv2d(1, 7, 3, "A")
    model = Written(lambda net, x: net.conv(x.float()).log_softmax(1), conv=conv)
    assert compile_model(WrappedModel(model, SHAPE, levels=7)).normalised


@pytest.mark.parametrize(("precision", "kept"), [("bf16", 8), ("fp16", 11), ("same", 24)])
def test_weights_are_rounded_to_the_precision_that_stores_them(precision, kept):
    found = compile_model(wrapped(), precision)
    weights = [run.weight for i in found.program.instructions for run in (*i.row_runs, *i.pixel_runs)]
    mantissas = torch.cat([weight.flatten() for weight in weights]).frexp().mantissa.double()
    exact = [bits for bits in range(1, 25) if bool((mantissas * 2**bits).frac().eq(0).all())]
    assert exact[0] == kept
    narrow = precision in ("bf16", "fp16")
    size, full = (each.listing("cpu").weight_bytes for each in (found, compile_model(wrapped())))
    assert (size < full) == narrow


def test_a_precision_that_does_not_go_with_the_dtype_is_refused():
    with pytest.raises(
        ValueError, match="precision='bf16' goes with a float32 model, this one is torch.float64"
    ):
        compile_model(WrappedModel(pixelcnn().double(), SHAPE), "bf16")


def test_what_the_check_sees():
    """A weight that is off by one part in a hundred, in any instruction, is found even in float32."""
    model = wrapped(classes=3)
    program, conditions, *_ = found = capture_model(model)
    expected = expectations(model, found.replay)
    check_program(program, conditions, model, expected)
    for index, instruction in enumerate(program.instructions):
        if isinstance(instruction, Convolution):
            taps = tuple(replace(tap, weight=1.01 * tap.weight) for tap in instruction.taps)
            broken = list(program.instructions)
            broken[index] = replace(instruction, taps=taps)
            with pytest.raises(CaptureMismatch, match="differs from the model by"):
                check_program(replace(program, instructions=tuple(broken)), conditions, model, expected)


@pytest.mark.parametrize("shape", [SHAPE, (1, 48, 44)])  # of large images, one is compared
def test_a_branch_that_only_the_checked_image_takes_is_found(shape):
    def branching(net, x):
        net.calls += 1
        return net.conv(x.float()) * net.calls

    model = Written(branching, conv=MaskedConv2d(1, 7, 3, "A"), calls=0)
    with pytest.raises(CaptureMismatch, match="what an earlier call left behind"):
        compile_model(WrappedModel(model, shape, levels=7))


class Odd(torch.nn.Module):
    """Something odd happens between its two layers."""

    def __init__(self, odd, n_classes=None):
        super().__init__()
        torch.manual_seed(0)
        self.n_classes = n_classes
        self.first, self.last, self.odd = MaskedConv2d(1, 6, 3, "A"), torch.nn.Conv2d(6, 7, 1), odd

    def forward(self, images, *given):
        h = self.first(images / 6)
        return 3 * self.last(self.odd(h, images, *given))


ODD = {
    "a number that is read off the features": lambda h, x: h / h.abs().max().item(),
    "one that only dark images have": lambda h, x: h * (1 if x.max() > 3 else 2),
    "one that only bright images have": lambda h, x: h * (1 if x.min() < 3 else 2),
    "the batch size": lambda h, x: h * len(x),
    "one of the batch size that is 1 for two images": lambda h, x: h * (len(x) - 1),
    "what is in another image": lambda h, x: h + x.flatten(1).float().mean(1).max().item(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ODD)
def test_a_number_that_differs_from_image_to_image_or_with_the_batch_is_found(name, dtype):
    with pytest.raises(
        (Unsupported, CaptureMismatch), match="for two examples|differs from the model by up to"
    ):
        compile_model(WrappedModel(Odd(ODD[name]).to(dtype), SHAPE, levels=7, image_form="levels"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_branch_on_one_label_is_found(dtype):
    def odd(h, x, labels):
        return h + labels.to(h)[:, None, None, None] * (2 if (labels == 8).any() else 1)

    model = Odd(odd, n_classes=10).to(dtype)
    with pytest.raises(
        Unsupported, match="an if on what depends on the labels: it falls otherwise for label 8"
    ):
        compile_model(WrappedModel(model, SHAPE, levels=7, image_form="levels"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_program_that_divides_by_zero_where_its_model_looks_away_is_refused_with_advice(dtype):
    def divided(h, x):
        before = F.pad(x, (1, 0))[..., :-1].to(h)
        return torch.where(before > 0, h / before, h)

    model = WrappedModel(Odd(divided).to(dtype), SHAPE, levels=7, image_form="levels")
    with pytest.raises(CaptureMismatch, match="The program divides by zero, or multiplies infinity by zero"):
        compile_model(model)


def test_a_program_that_rounds_more_than_its_model_is_refused():
    """It adds a million and takes it away again, which loses much in float32; the model does so in float64."""

    def shifted(h):
        return torch.relu(h + 1e6) - 1e6

    compile_model(WrappedModel(Odd(lambda h, x: shifted(h)), SHAPE, levels=7, image_form="levels"))
    careful = Odd(lambda h, x: shifted(h.double()).to(h))
    with pytest.raises(CaptureMismatch, match="The program rounds more than the model: large numbers cancel"):
        compile_model(WrappedModel(careful, SHAPE, levels=7, image_form="levels"))


def test_logits_that_are_large_are_compared_as_exactly_as_they_can_be():
    """Where all of them are large, their rounding moves probabilities."""
    for shift in (1e6, -1e9):
        compile_model(
            WrappedModel(
                Odd(lambda h, x, shift=shift: 1e3 * h + shift).double(), SHAPE, levels=7, image_form="levels"
            )
        )


def test_a_mismatch_says_where_it_is_worst():
    error = torch.zeros(2, 3, *SHAPE[1:])
    error[0, 1, 2, 0], error[1, 2, 4, 3] = 0.1, 0.3
    where = r"differs from the model by up to 0\.3 .*, in distribution 2 at row 4, column 3\."
    with pytest.raises(CaptureMismatch, match=where):
        check_error(error, torch.full_like(error, 0.05), wrapped(), "")


@pytest.mark.parametrize("factor", [2, float("nan")])
def test_the_program_is_checked_after_the_passes_that_change_it(monkeypatch, factor):
    def wrong(program):
        *rest, last = program.instructions
        last = replace(last, taps=tuple(replace(tap, weight=factor * tap.weight) for tap in last.taps))
        return replace(program, instructions=(*rest, last))

    monkeypatch.setattr(pipeline, "SIMPLIFYING", (*pipeline.SIMPLIFYING, wrong))
    with pytest.raises(CaptureMismatch):
        compile_model(wrapped())


def test_every_stage_can_be_watched(monkeypatch):
    seen = []

    def watch(name, program):
        seen.append((name, str(program).split(" for ")[0]))

    monkeypatch.setattr(pipeline, "watches", [*pipeline.watches, watch])
    found = compile_model(wrapped(), "bf16")
    for runtime in pipeline.TAILS:
        pipeline.for_runtime(runtime, found.program)
    assert [name for name, _ in seen] == ["capture", *(each.__name__ for each in pipeline.PASSES)]
    assert seen[0][1] == "program" and seen[-1][1] == "causal program"


def test_the_tests_verify_what_capture_gives(monkeypatch):
    def broken(*arguments):
        found = capture(*arguments)
        return found._replace(program=replace(found.program, instructions=found.program.instructions[1:]))

    monkeypatch.setattr(compiler, "capture", broken)
    with pytest.raises(InvalidProgram, match="%1 is defined"):
        compile_model(wrapped())


def test_every_runtime_that_executes_programs_has_a_tail():
    assert set(pipeline.TAILS) == {*RUNTIMES} - {"auto", "reference"}


def test_the_tests_verify_what_is_done_for_one_runtime(monkeypatch):
    def broken(program):
        return replace(program, instructions=program.instructions[1:])

    found = compile_model(wrapped())
    monkeypatch.setitem(pipeline.TAILS, "cuda", (broken,))
    with pytest.raises(InvalidProgram, match="is defined"):
        found.program_for("cuda")


def test_a_model_that_leaks_is_refused():
    model = pixelcnn()
    model.conv_in.mask.fill_(1)
    with pytest.raises(NotCausal, match="conv_in"):
        compile_model(WrappedModel(model, SHAPE))


@pytest.mark.parametrize(("precision", "unit"), [("tf32", 2.0**-11), ("ieee", 2.0**-23)])
def test_one_rounding_on_a_gpu(precision, unit):
    """In the precision that is set for convolutions, though another one holds for recurrences."""
    on_a_gpu: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    with float32_precision(precision):
        assert rounding_unit(on_a_gpu) == unit


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_logits_that_are_not_finite_are_named(bad):
    logits = torch.zeros(2, 3, 4, 5, 6)
    check_finite(logits, Categorical(6))
    logits[1, 2, 3, 0, 5] = logits[1, 2, 3, 4, 0] = bad
    with pytest.raises(NonFiniteLogits) as caught:
        check_finite(logits, Categorical(6))
    assert caught.value.location == (1, 2, 3, 0)

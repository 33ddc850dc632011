"""The benchmark reports no speed-up over wrong images, and says what it timed."""

import copy
import io
import json
import math
import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import checkpoint
from pixelcnn_fast.__main__ import main
from pixelcnn_fast.bench import report, streams
from pixelcnn_fast.bench.checks import BF16_ROUNDING, CHUNK, LIMIT, Check, Oracle, rounding
from pixelcnn_fast.bench.contestants import Result, SomePixels
from pixelcnn_fast.bench.measure import compare, wrong_images
from pixelcnn_fast.bench.naive import Naive, naive_apart
from pixelcnn_fast.bench.workload import Workload, random_model, workload
from pixelcnn_fast.heads import Categorical, LogisticMixture, drawing
from pixelcnn_fast.heads.drawing import draw
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.models import PixelCNN, PixelCNNpp
from pixelcnn_fast.native import native, required
from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.pictures import Bar
from pixelcnn_fast.sampler import Sampler
from tests.needs import EACH_ISA, instruction_set, needs_native
from tests.tiers import thorough

TINY: dict[str, Any] = dict(input_channels=2, hidden_channels=6, n_residual=1, kernel_size=3)


@pytest.fixture(scope="module")
def work() -> Workload:
    return workload(random_model(**TINY), 3, 5, 4)


def one_too_high(logits: Tensor, noise: Tensor, options: SamplingOptions) -> Tensor:
    return (draw(logits, noise, options) + 1).clamp_max(logits.shape[-1] - 1)


# -- the check


def test_excess_of_every_level() -> None:
    """Inside the interval it is 0; outside, the distance to the nearer end."""
    probability = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for noise, expected in [
        (0.1, [0, 0.1, 0.6]),
        (0.2, [0, 0, 0.5]),
        (0.6, [0.4, 0, 0.1]),
        (0.95, [0.75, 0.25, 0]),
    ]:
        u = torch.full((3, 1), noise, dtype=torch.float64)
        excess = Categorical(3).excess(probability.log().expand(3, 3), torch.arange(3)[:, None], u)
        torch.testing.assert_close(
            excess[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0
        )


def test_last_level_is_right_beyond_the_rounded_sum() -> None:
    almost_one = torch.tensor([1 - 1e-16], dtype=torch.float64)
    assert Categorical(256).excess(torch.zeros(256), torch.tensor([255]), almost_one) == 0


def test_oracle_finds_one_wrong_level(work: Workload) -> None:
    images = Sampler(work.model, work.shape).sample(work.images, noise=work.noise, runtime="reference")
    oracle = Oracle(work)
    assert oracle.excess(images).max() <= LIMIT
    wrong = images.clone()
    wrong[2, 1, 4, 3] = (int(wrong[2, 1, 4, 3]) + 128) % 256  # the last pixel: no later one can give it away
    assert oracle.excess(wrong).argmax() == images.numel() - 1
    assert oracle.excess(wrong).max() > LIMIT


def test_the_oracle_goes_through_many_images_in_parts() -> None:
    work = workload(random_model(n_classes=3, **TINY), CHUNK + 2, 3, 4)
    images = Sampler(work.model, work.shape).sample(work.images, work.labels, noise=work.noise)
    oracle = Oracle(work)
    assert oracle.excess(images).shape == images.shape and oracle.excess(images).max() <= LIMIT
    assert oracle.excess(images.flip(0)).max() > LIMIT  # other images are not taken for those


def test_nan_is_not_ok() -> None:
    assert not Check(0, 1, float("nan")).ok
    assert not Check(0, 1, 0.0, rounding=float("nan")).ok
    assert Check(0, 1, 0.0).ok


def test_rounding_and_identity_are_told_apart() -> None:
    assert str(Check(0, 9, 3e-7)) == "identical"
    assert str(Check(2, 9, 3e-7)) == "2 of 9 sub-pixels differ, all within rounding"
    assert str(Check(2, 9, 3e-3)) == "WRONG"


def test_what_is_said_of_bf16() -> None:
    """Products are judged by the model, and else weights are by themselves."""
    product = Check(2, 9, 3e-3, rounding=0.002, limit=5e-3)
    assert str(product) == "2 of 9 sub-pixels differ, all within rounding to bf16"
    assert "3.0e-03 outside" in product.evidence and "(allowed 5e-03), by the model" in product.evidence
    weights = Check(2, 9, 3e-5, rounding=0.002, model_excess=0.2)
    assert str(weights) == "2 of 9 sub-pixels differ, all right for rounded weights"
    assert str(Check(0, 9, 3e-5, rounding=0.002, model_excess=0.2)) == "identical"
    assert "3.0e-05 outside" in weights.evidence and weights.evidence.endswith("at most 2.0e-01 outside")
    for check in (product, weights):
        assert "at most 0.20% (allowed 0.39%)" in check.evidence


def test_bf16_is_judged_by_its_own_bound() -> None:
    """Its noise must fit its weights, and those be the model's own, rounded; what that does is up to the model."""
    weights = torch.rand(99, 99, generator=torch.Generator().manual_seed(0)) - 0.5
    weights[3] = 0
    assert rounding([weights], [weights]) == 0
    fine = rounding([weights], [weights.bfloat16().float()])
    assert 0.9 * BF16_ROUNDING < fine <= BF16_ROUNDING
    assert rounding([weights], [weights.to(torch.float8_e4m3fn).float()]) > BF16_ROUNDING
    assert rounding([weights], []) == rounding([torch.zeros(2)], [torch.ones(2)]) == math.inf
    assert Check(9, 9, 0.0, rounding=fine, model_excess=0.2).ok
    assert not Check(9, 9, 1e-3, rounding=fine, model_excess=0.0).ok
    assert not Check(9, 9, 0.0, rounding=2 * BF16_ROUNDING, model_excess=0.0).ok
    assert Check(9, 9, 1e-3, rounding=fine, model_excess=0.0, limit=2e-3).ok
    assert not Check(9, 9, 3e-3, rounding=fine, model_excess=0.0, limit=2e-3).ok


# -- comparisons


@pytest.mark.parametrize("naive_pixels", [0, 6])
def test_compare(work: Workload, naive_pixels: int) -> None:
    names = ["reference", "eager"] + ["cpu", "cpu-bf16"] * (native() is not None)
    results = compare(work, names, repeats=3, naive_pixels=naive_pixels)
    assert [result.name for result in results] == names
    naive, *_, last = (result for result in results if not result.name.endswith("-bf16"))
    assert (
        last.check is not None and last.check.differing == 0
    )  # the others' images are compared with its own
    assert (naive.timed, naive.extrapolated) == ((6, True) if naive_pixels else (20, False))
    for result in results:
        assert result.check is not None
        assert result.check.ok and len(result.seconds) == 3 and min(result.seconds) > 0
        assert result.check.drawn == work.images * 2 * result.timed  # rounds with the same images count once
        if not result.name.endswith("-bf16"):
            assert result.check.excess <= LIMIT


def test_conditional_models_compare(tmp_path: Path) -> None:
    work = workload(random_model(n_classes=2, **TINY), 3, 3, 4)
    assert work.labels is not None and work.labels.tolist() == [0, 1, 0]
    for names in (["reference", "eager"], ["reference"]):
        results = compare(work, names, 1, naive_pixels=5)
        assert all(result.check is not None and result.check.ok for result in results)


def test_naive_may_run_in_one_round_only(work: Workload) -> None:
    results = compare(work, ["reference", "eager"], repeats=2, naive_repeats=1)
    assert [len(result.seconds) for result in results] == [1, 2]


def test_naive_runs_the_plain_model() -> None:
    inner, ran = random_model(**TINY).double(), []

    class Unit(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.inner, self.name = inner, name

        def forward(self, x: Tensor) -> Tensor:
            ran.append(self.name)
            return self.inner(255 * x)

    class WithAnother(Workload):
        def plain_model(self) -> nn.Module:
            return Unit("other")

    work = WithAnother(**vars(workload(Unit("own"), 2, 3, 4, image_form="unit", levels=256, channels=2)))
    sampler = work.sampler()
    expected = sampler.sample(2, noise=work.noise, runtime="reference")
    plain = Naive(work, sampler.head, 1)
    for each, name in ((plain, "other"), (sampler, "own")):
        ran.clear()
        found = each.sample(2, None, noise=work.noise, runtime="reference")
        assert torch.equal(found, expected) and set(ran) == {name}


def of_seed(seed: int) -> Workload:
    return workload(random_model(seed, n_classes=2, **TINY), 3, 5, 4)


@pytest.mark.parametrize(("seed", "naive_pixels", "right"), [(0, 0, True), (1, 6, False)])
def test_naive_may_draw_in_a_process_of_its_own(seed: int, naive_pixels: int, right: bool) -> None:
    """It makes its own model there, which must be the same."""
    with naive_apart(partial(of_seed, seed)) as naive:
        results = compare(of_seed(0), ["reference", "eager"], 1, naive_pixels, naive=naive)
    assert ("reference, 3 at once" in wrong_images(results)) == (not right) and results[0].seconds[0] > 0


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_some_pixels_of_each_round_tell_how_long_an_image_takes(rounds, work, monkeypatch):
    """A pixel takes half a second, and passing over what is given 4 s."""
    drawn = []

    def draw(self: SomePixels, where: Tensor) -> tuple[float, Tensor]:
        drawn.append(where)
        return 4 + 0.5 * int(where.sum()), torch.zeros(3, *work.shape)

    monkeypatch.setattr(SomePixels, "_draw", draw)
    naive = SomePixels(Sampler(work.model, work.shape), work, torch.zeros(3, *work.shape), 7, rounds)
    del drawn[:]
    for index in range(rounds):
        naive.run(index)
    assert naive.result.seconds == [0.5 * work.pixels] * rounds and naive.result.timed == 7
    warm_ups, timed = torch.stack(drawn[::2]), torch.stack(drawn[1::2])
    assert len(warm_ups) == warm_ups.sum() == rounds and timed.sum(0).max() == 1 and timed.sum() == 7


@pytest.mark.parametrize(("pixels", "timed"), [(1, 3), (10**12, 20)])
def test_some_pixels_are_one_for_each_round_at_least_and_the_image_at_most(pixels, timed, work, monkeypatch):
    monkeypatch.setattr(SomePixels, "_draw", lambda self, where: (1.0 + int(where.sum()), torch.zeros(0)))
    naive = SomePixels(Sampler(work.model, work.shape), work, torch.zeros(0), pixels, rounds=3)
    for index in range(3):
        naive.run(index)
    assert naive.result.timed == timed and naive.result.seconds == [work.pixels] * 3


@pytest.mark.parametrize("naive_pixels", [0, 6])
def test_a_wrong_sampler_is_found(work: Workload, naive_pixels: int, monkeypatch) -> None:
    """Both Python runtimes draw the same wrong images: only the probabilities give them away."""
    monkeypatch.setattr(drawing, "draw", one_too_high)
    assert "reference, 3 at once" in wrong_images(compare(work, ["reference", "eager"], 1, naive_pixels))


# -- another head


class OfMixture(PixelCNN):
    """Its first outputs are read as a mixture of two logistics."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(images).permute(0, 1, 4, 2, 3).flatten(1, 2)[:, :14]


class WithoutPlainModel(Workload):
    def plain_model(self) -> nn.Module:
        return copy.deepcopy(self.model)


@pytest.fixture(scope="module")
def work_of_mixture() -> Workload:
    model = random_model(family=OfMixture, **TINY)
    work = workload(model, 3, 5, 4, head=LogisticMixture(2, colours=2))
    assert work.noise.shape == (3, 3, 5, 4) and work.shape == (2, 5, 4)
    return WithoutPlainModel(**vars(work))


def test_a_model_that_is_known_to_give_mixtures_gets_their_noise() -> None:
    work = workload(PixelCNNpp(1, 5, 1, 2), 2, 3, 4)
    (result,) = compare(work, ["eager"], 1)
    assert work.noise.shape == (2, 2, 3, 4)
    assert result.check is not None and result.check.ok


def test_mixtures_compare(work_of_mixture: Workload) -> None:
    names = ["reference", "eager"] + ["cpu", "cpu-bf16"] * (native() is not None)
    for result in compare(work_of_mixture, names, 1, naive_pixels=6):
        assert result.check is not None and result.check.ok
        assert result.check.limit == LIMIT or result.name == "cpu-bf16"
        assert result.check.drawn == 3 * 2 * result.timed


def test_a_wrong_sampler_of_mixtures_is_found(work_of_mixture: Workload, monkeypatch) -> None:
    draw = LogisticMixture.draw
    monkeypatch.setattr(LogisticMixture, "draw", lambda *given: (draw(*given) + 9) % 256)
    assert "reference, 3 at once" in wrong_images(compare(work_of_mixture, ["reference", "eager"], 1))


@needs_native
def test_wrong_bf16_images_are_found(work: Workload, monkeypatch) -> None:
    from pixelcnn_fast.runtimes.cpu import CpuRuntime

    run = CpuRuntime.run

    def shifted(self, job) -> None:
        run(self, job)
        job.values.copy_((job.values + 1) % 256)

    monkeypatch.setattr(CpuRuntime, "run", shifted)
    assert "cpu-bf16" in wrong_images(compare(work, ["eager", "cpu-bf16"], 1))


@pytest.mark.parametrize("isa", EACH_ISA)
def test_products_of_bf16_are_judged_by_what_they_are_in_plain_pytorch(work: Workload, isa: str) -> None:
    """Only where the processor multiplies bf16 may noise lie further outside than rounding of float32 explains."""
    module = required()
    with instruction_set(isa):
        (result,) = compare(work, ["cpu-bf16"], 1)
        check = result.check
        assert check is not None and check.ok and 0 <= check.excess <= check.limit
        assert module.multiplies_bf16() == (isa in ("avx512_bf16", "amx_bf16"))
        if module.multiplies_bf16():
            assert 2 * LIMIT < check.limit < 0.02 and check.model_excess is None
            assert "by the model in float64" in check.evidence
        else:
            assert check.limit == LIMIT


@needs_native
def test_weights_that_are_too_coarse_are_found(work: Workload, monkeypatch) -> None:
    """The images fit these weights, so only the weights give them away."""
    whole = pipeline.rounded_weights
    monkeypatch.setattr(pipeline, "rounded_weights", lambda program, _: whole(program, torch.float8_e4m3fn))
    monkeypatch.setattr(pipeline.rounded_weights, "__name__", "rounded_weights")
    found = wrong_images(compare(work, ["eager", "cpu-bf16"], 1))
    assert re.match(r"cpu-bf16.*by at most \d+\.\d+% \(allowed 0\.39%\)", found)


@needs_native
@thorough
def test_the_packaged_model_passes_in_bf16() -> None:
    """Its digits turn on few weights: rounding them moves the probabilities further than that of most models."""
    results = compare(workload(checkpoint.load("mnist"), 2, 28, 28), ["cpu", "cpu-bf16"], 1)
    exact, rounded = [result.check for result in results]
    assert exact is not None and rounded is not None and exact.ok and rounded.ok
    by_the_model = rounded.excess if rounded.model_excess is None else rounded.model_excess
    assert by_the_model > LIMIT  # so it is another model's images


# -- reports


def test_speed_ups_are_ratios_of_medians() -> None:
    naive = Result("reference", 2, 16, 4, [8.0, 10.0, 90.0], Check(0, 8, 0.0))
    fast = Result("cpu", 2, 16, 16, [0.4, 0.5, 0.1], Check(1, 8, 1e-7))
    assert report.speed_ups([naive, fast]) == {"reference": {"reference": 1.0, "cpu": 25.0}}
    header, _, first, second, *rest = report.markdown([[naive, fast]]).splitlines()
    assert "extrapolated from 4 of 16 pixels" in first and "5.00 s" in first and "4.00 s – 45.0 s" in first
    assert (
        "25×" in second and "200 ms" in second and "1 of 8 sub-pixels differ, all within rounding" in second
    )
    assert [line.split("|")[5].strip() for line in (header, first, second)] == ["images/s", "0.2", "5"]
    assert "1.0e-07" in rest[-1]
    assert {line.count("|") for line in (header, first, second)} == {header.count("|")}


def test_a_wrong_contestant_has_no_speed_up_and_is_no_baseline() -> None:
    naive = Result("reference", 2, 16, 16, [10.0], Check(0, 8, 0.0))
    cached = Result(
        "eager", 2, 16, 16, [5.0], Check(0, 8, 0.3)
    )  # as those with which it is compared, wrong, too
    fast = Result("cpu", 2, 16, 16, [0.5], Check(0, 8, 0.0))
    assert report.speed_ups([naive, cached, fast]) == {"reference": {"reference": 1.0, "cpu": 20.0}}
    _, _, first, second, third, *rest = report.markdown([[naive, cached, fast]]).splitlines()
    assert "×" in first and "20×" in third
    assert "WRONG" in second and "×" not in second and "WRONG" not in first + third
    assert third.count("250 ms") == 1 and "one run" in third  # which has no spread
    assert "3.0e-01" in rest[-1]


def test_the_chart_shows_no_factor_of_a_wrong_contestant(tmp_path: Path, monkeypatch) -> None:
    shown: dict[str, list[Bar]] = {}
    monkeypatch.setattr(report.pictures, "chart", lambda panels, *_, **__: shown.update(panels))
    naive = Result("reference", 2, 16, 4, [10.0], Check(0, 8, 0.0))
    cached = Result("eager", 2, 16, 16, [5.0], Check(8, 8, 0.3))
    fast = Result("cpu", 2, 16, 16, [0.5], Check(0, 8, 0.0))
    alone = [Result(name, 1, 16, 16, [s], Check(0, 8, 0.0)) for name, s in (("eager", 1.0), ("cpu", 0.5))]
    report.save([[naive, cached, fast], alone], tmp_path, "sampling", "Title", report.machine())
    assert [*shown] == ["2 images at once", "1 image at once"]
    assert [bar.note for bars in shown.values() for bar in bars] == [
        "5.00 s",
        "2.50 s   WRONG images",
        "250 ms   20×",
        "1.00 s",
        "500 ms   2×",
    ]
    two_at_once = shown["2 images at once"]
    assert [bar.seconds for bar in two_at_once] == [5, 2.5, 0.25]
    assert [bar.estimated for bar in two_at_once] == [True, False, False]
    assert "extrapolated from 4 of 16 pixels" in two_at_once[0].label


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234×"), (10, "10×"), (9.87, "9.9×"), (0.123, "0.12×")]
)
def test_factors(value: float, text: str) -> None:
    assert report.factor(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (123.4, "123 s"),
        (5.678, "5.68 s"),
        (1.0, "1.00 s"),
        (0.0561, "56.1 ms"),
        (1e-3, "1.00 ms"),
        (2e-6, "2.00 µs"),
        (3e-8, "0.03 µs"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def bench(tmp_path: Path, *more: str) -> int:
    path = tmp_path / "tiny.safetensors"
    checkpoint.save(random_model(**TINY), path)
    size = ["--size", "4x5", "--repeats", "2", "--naive-pixels", "4"]
    options = ["--model", str(path), *size, "--out", str(tmp_path)]
    return main(["bench", "sampling", *options, *more])


def test_bench_writes_table_json_and_chart(tmp_path: Path, capsys) -> None:
    threads = torch.get_num_threads()
    try:
        assert bench(tmp_path, "--runtimes", "reference,eager", "--batch", "1,2", "--threads", "1") == 0
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert re.search(r"naive.*extrapolated from 4 of 20 pixels.*identical", out) and "×" in out
    assert out.split()[-3:] == [str(tmp_path / f"sampling.{suffix}") for suffix in ("md", "json", "png")]
    found = json.loads((tmp_path / "sampling.json").read_text())
    assert found["machine"]["threads"] == 1 and found["machine"]["torch"] == torch.__version__
    assert [comparison["images"] for comparison in found["comparisons"]] == [1, 2]
    naive, eager = found["comparisons"][1]["contestants"]
    assert len(naive["seconds"]) == 2 and naive["extrapolated"] and not eager["extrapolated"]
    assert "extrapolated" in (tmp_path / "sampling.md").read_text()
    assert (tmp_path / "sampling.png").stat().st_size > 10_000


def test_bench_prints_no_speed_up_over_a_failed_check(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(drawing, "draw", one_too_high)
    assert bench(tmp_path, "--runtimes", "reference,eager", "--batch", "1") == 1
    captured = capsys.readouterr()
    assert captured.out.count("WRONG") == 2 and "×" not in captured.out + captured.err
    assert captured.err.startswith("check failed") and captured.err.count("\n") == 1
    [comparison] = json.loads((tmp_path / "sampling.json").read_text())["comparisons"]
    assert comparison["speed_ups"] == {} and comparison["contestants"][1]["check"]["text"] == "WRONG"


@needs_native
def test_bench_shows_who_passed_besides_who_failed(tmp_path: Path, capsys, monkeypatch) -> None:
    """Only the Python runtimes draw wrong images, and only at two at once."""

    def wrong_in_pairs(logits: Tensor, noise: Tensor, options: SamplingOptions) -> Tensor:
        drawn = draw(logits, noise, options)
        return (drawn + 1).clamp_max(logits.shape[-1] - 1) if len(logits) == 2 else drawn

    monkeypatch.setattr(drawing, "draw", wrong_in_pairs)
    assert bench(tmp_path, "--runtimes", "eager,cpu", "--batch", "1,2,3") == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("| ")][1:]
    assert ["WRONG" in line for line in lines] == [False, False, True, False, False, False]
    assert ["×" in line for line in lines[1::2]] == [True, False, True]  # those of cpu
    assert "eager, 2 at once" in captured.err and "cpu, 2" not in captured.err


@pytest.mark.parametrize(
    ("options", "shape", "seed"),
    [
        (["--model", "mnist"], (1, 28, 28), 0),
        (["--seed", "3"], (3, 32, 32), 3),
        (["--model", "mnist", "--size", "4x5"], (1, 4, 5), 0),
    ],
)
def test_what_bench_draws_by_default(options, shape, seed, tmp_path, monkeypatch):
    """An interrupt in the first comparison leaves no file."""
    found: list[Workload] = []

    def interrupted(work: Workload, *_: object, **__: object) -> None:
        found.append(work)
        raise KeyboardInterrupt

    monkeypatch.setattr("pixelcnn_fast.cli.bench.compare", interrupted)
    assert main(["bench", *options, "--out", str(tmp_path)]) == 130
    (work,) = found
    assert (
        torch.equal(work.noise, workload(work.model, 1, shape[1], shape[2], seed).noise)
        and work.shape == shape
    )
    assert not list(tmp_path.iterdir())


def test_interrupted_bench_saves_the_finished_batches(tmp_path: Path, capsys, monkeypatch) -> None:
    from pixelcnn_fast.cli import bench as module

    def interrupted(work: Workload, *args, **kwargs):
        if work.images == 2:
            raise KeyboardInterrupt
        return compare(work, *args, **kwargs)

    monkeypatch.setattr(module, "compare", interrupted)
    assert bench(tmp_path, "--runtimes", "eager", "--batch", "1,2,3") == 130
    assert "1 of 3 batch sizes" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "sampling.json").read_text())["comparisons"]) == 1


@pytest.mark.parametrize("text", ["flags : sse\n", None])
def test_a_processor_without_a_name_has_that_of_its_kind(text: str | None, monkeypatch) -> None:
    def read(path: Path) -> str:
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert report.processor() == "riscv64"
    monkeypatch.setattr(Path, "read_text", lambda path: "model : 1\nmodel name\t: A: 9\nmodel name : B\n")
    assert report.processor() == "A: 9"


def test_a_busy_machine_is_mentioned() -> None:
    machine = report.machine()
    assert "busy" in report.about({**machine, "taken_cores": 1.5})
    assert "busy" not in report.about({**machine, "taken_cores": 0.1})
    assert "busy" not in report.about({**machine, "taken_cores": None})


def test_the_chart_mentions_a_busy_machine_too(tmp_path: Path, monkeypatch) -> None:
    warnings = []
    monkeypatch.setattr(report.pictures, "chart", lambda *args, warning, **more: warnings.append(warning))
    results = [Result("eager", 1, 4, 4, [1.0], Check(0, 4, 0.0))]
    for taken in (1.5, 0.1):
        report.save([results], tmp_path, "sampling", "Title", {**report.machine(), "taken_cores": taken})
    assert "busy" in warnings[0] and warnings[1] == ""


def test_a_random_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (random_model(seed, **TINY).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, same[name]) for name, x in one.items())
    assert not torch.equal(one["conv_out.weight"], other["conv_out.weight"])


def test_who_listens_no_more_is_no_error_and_a_full_disk_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        monkeypatch.setattr("sys.stdout", gone)
        streams.say("a line")
        monkeypatch.setattr("sys.stderr", gone)
        streams.complain("a line")
    monkeypatch.setattr("sys.stdout", None)
    streams.say("a line")

    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    with pytest.raises(OSError, match="standard output: No space left on device"):
        streams.say("a line")
    monkeypatch.setattr("sys.stderr", Full())
    streams.complain("a line")


def test_progress_is_for_those_who_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for stream in (None, io.StringIO(), SimpleNamespace(isatty=lambda: True)):
        monkeypatch.setattr("sys.stderr", stream)
        seen.append(streams.watched())
    assert seen == [False, False, True]

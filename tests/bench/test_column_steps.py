"""Column steps of the CUDA sampler take no more than was recorded, and batches what follows from them."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import column_steps
import cuda_budget
import pytest
import torch
from column_steps import GATED, PIXELCNN, SMALL, ColumnSteps, Counts, Network, Step, needed_compiler
from cuda_budget import (
    RECORDED,
    RECORDED_ARCH,
    ROWS,
    SLOWER,
    Prediction,
    Row,
    known,
    recorded,
    recorded_steps,
)
from sass_simulator import RATES

from pixelcnn_fast.models import PixelCNN
from pixelcnn_fast.runtimes.cuda.cost import cycles as cost
from pixelcnn_fast.runtimes.cuda.kernels import digest, sources
from pixelcnn_fast.runtimes.cuda.runtime import Shape
from tests.sass_simulator.needs import needs_kernels
from tests.tiers import few, thorough

H100 = RATES["90"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> ColumnSteps:
    """Of all tests here, so that networks of the same tiles share a kernel. What was recorded is not simulated again
    while nothing has changed of which it is made."""
    return ColumnSteps(RECORDED_ARCH, tmp_path_factory.mktemp("steps"), known=known())


def skip_with_another_compiler() -> None:
    """It makes other code of the same sources."""
    if (found := str(needed_compiler())) != recorded()["compiler"]:
        pytest.skip(f"recorded with {recorded()['compiler']}, here is {found}")


@needs_kernels
@pytest.mark.parametrize("name", RECORDED)
@thorough
def test_no_step_is_slower_than_recorded(steps: ColumnSteps, name: str):
    skip_with_another_compiler()
    found, limit = recorded_steps(steps, name), recorded()["cycles"][name]
    cycles = sum(step.cycles for step in found)
    assert cycles <= SLOWER * limit, (
        f"a column step takes {cycles:,.0f} cycles, {cycles / limit - 1:.0%} more than recorded. "
        "If it must: python benchmarks/cuda_budget.py --record\n"
        + "\n".join(step.run.profile(10) for step in found if step.run)
    )


@thorough
def test_what_is_chosen_by_cost_is_not_far_from_what_was_simulated(steps: ColumnSteps):
    """Of networks without recurrences: the rule leaves out what LSTMs make of their sums."""
    for name in ("PixelCNN, 1 image a block", "PixelCNN, 1 image a cluster", "PixelCNN, 8 images a block"):
        network, images, blocks = RECORDED[name]
        runtime = steps.with_clusters_of(blocks).runtime(network)
        shape = runtime.shape(images)
        facts = runtime.sampler(Shape(1, shape.cluster)).facts
        at_once = -(-images // shape.images) * shape.cluster
        cycles = (
            cost(facts, "bf16", shape.images, at_once, H100.multiprocessors) / facts["sweeps"][0]["steps"]
        )
        assert cycles == pytest.approx(recorded()["cycles"][name], rel=0.2)


@needs_kernels
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@thorough
def test_what_must_be_reached_is_predicted(steps: ColumnSteps, row: Row):
    skip_with_another_compiler()
    result = row.result(row.predicted(steps))
    assert result["met"], result


@pytest.mark.parametrize("arch, cluster", few([("90", 8), ("80", 1), ("120", 1)], 1))
def test_blocks_form_clusters_where_the_gpu_has_them(tmp_path, arch, cluster):
    assert ColumnSteps(arch, tmp_path).runtime(GATED).shape(1).cluster == cluster


@needs_kernels
@pytest.mark.parametrize("arch", ["80", "120"])
@thorough
def test_steps_of_other_gpus_are_simulated(steps: ColumnSteps, tmp_path: Path, arch: str):
    """They multiply as much; those before sm_90 have other barriers. None of these has multiprocessors as fast as an
    H100's, cycle by cycle: an RTX 5090's take four times as long for a product."""
    (found,), (expected,) = (
        each.of_sweeps(SMALL, 1) for each in (ColumnSteps(arch, tmp_path, blocks=1), steps)
    )
    assert found.run is not None and expected.run is not None
    assert found.run.executed({"HMMA"}) == expected.run.executed({"HMMA"}) > 100
    assert expected.cycles < found.cycles < 2 * expected.cycles


def test_every_recorded_step_has_a_limit():
    assert set(recorded()["cycles"]) == set(RECORDED)


def test_recorded_rows_are_the_budgets():
    """They may be missing, until somebody records them."""
    rows = recorded().get("rows", [])
    assert [row["name"] for row in rows] in ([], [row.name for row in ROWS])
    assert all(row.keys() == {"name", "unit", "must", "reach", "predicted", "met"} for row in rows)
    assert all(row["predicted"] is not None for row in rows) and len(recorded().get("kernels", "")) in (0, 64)


def test_few_blocks_have_l2_to_themselves(tmp_path):
    steps = ColumnSteps("90", tmp_path)
    assert [steps.l2_rate(blocks) for blocks in (1, 16, 76, 88, 132)] == [64, 64, 64, 55.5, 37]


@pytest.fixture
def step() -> Step:
    return Step(1000, 500, steps=10, turns=1, blocks=100, waves=1, moved_bytes=0, forbidden=0, run=None)


def test_a_batch_takes_its_steps_wave_after_wave(step: Step):
    assert step.milliseconds(H100) == pytest.approx(H100.milliseconds(500 + 10 * 1000))
    twice = dataclasses.replace(step, waves=2)
    assert twice.milliseconds(H100) == pytest.approx(2 * step.milliseconds(H100))
    rows = dataclasses.replace(step, turns=32)
    assert rows.milliseconds(H100) == pytest.approx(32 * step.milliseconds(H100))


def test_dram_bounds_a_batch(step: Step):
    """100 blocks of 60,000 bytes take 2 us at 3 TB/s: 3,510 cycles."""
    bound = dataclasses.replace(step, moved_bytes=60_000)
    assert bound.milliseconds(H100) == pytest.approx(H100.milliseconds(500 + 10 * 3510))


@thorough
def test_what_is_known_is_simulated_again_once_anything_changes_of_which_it_is_made(monkeypatch, tmp_path):
    """The kernels, what compiles them, the simulator, the GPU, the plan, the weights."""
    simulated: list[None] = []

    def counted(run: None) -> Counts:
        simulated.append(run)
        return Counts(1e6 * len(simulated), 1e6 * len(simulated), 0)

    monkeypatch.setattr(column_steps, "simulate", lambda *_, **__: None)
    monkeypatch.setattr(column_steps, "counts", counted)
    monkeypatch.setattr(ColumnSteps, "_kernel", lambda *_: None)
    compiler = SimpleNamespace(identity="a")
    monkeypatch.setattr(column_steps, "needed_compiler", lambda: compiler)
    tiny = Network("tiny", lambda: PixelCNN(1, 8, 0), (1, 4, 8))
    known: dict[str, Counts] = {}

    def are_simulated(network: Network = tiny, images: int = 1, **others: Any) -> int:
        before = len(simulated)
        ColumnSteps(others.pop("arch", "90"), tmp_path, known=known, **others).of_sweeps(network, images)
        return len(simulated) - before

    assert (are_simulated(), are_simulated()) == (2, 0)
    name = "cuda/kernels/walk.h"
    assert are_simulated(sources={**sources(), name: sources()[name] + " "}) == 2
    assert are_simulated(arch="100") == 2 and are_simulated(images=1024) == 2
    assert are_simulated(dataclasses.replace(tiny, shape=(1, 4, 9))) == 2

    def of_other_weights() -> PixelCNN:
        torch.manual_seed(1)
        return PixelCNN(1, 8, 0)

    assert are_simulated(dataclasses.replace(tiny, model=of_other_weights)) == 2
    monkeypatch.setattr(column_steps, "other_sources", lambda: [b"another"])
    assert (are_simulated(), are_simulated()) == (2, 0)
    compiler.identity = "b"
    assert are_simulated() == 2


@pytest.mark.parametrize("options", ["--batches --json", "--clusters --record", "--recorded --profile"])
def test_options_that_exclude_each_other_are_refused(options: str, capsys):
    with pytest.raises(SystemExit):
        cuda_budget.main(options.split())
    assert "not" in capsys.readouterr().err.splitlines()[-1]


def test_recording_writes_what_steps_take(step: Step, monkeypatch, tmp_path, capsys):
    asked = []

    def two_sweeps(self: ColumnSteps, network, images: int) -> list[Step]:
        asked.append((network, images))
        return [dataclasses.replace(step, cycles=cycles) for cycles in (1000, 234.5)]

    monkeypatch.setattr(ColumnSteps, "of_sweeps", two_sweeps)
    monkeypatch.setattr(cuda_budget, "RECORD", tmp_path / "cycles.json")
    monkeypatch.setattr(cuda_budget, "needed_compiler", lambda: "NVRTC 13.0")
    monkeypatch.setattr(cuda_budget, "ROWS", [Row("a", "ms", 9, 2.5, lambda steps: Prediction(8))])
    cuda_budget.main(["--record"])
    found = json.loads((tmp_path / "cycles.json").read_text())
    row = {"unit": "ms", "must": 9, "reach": 2.5, "predicted": 8, "met": True}
    assert found == {
        "compiler": "NVRTC 13.0",
        "cycles": dict.fromkeys(RECORDED, 1234),
        "kernels": digest(),
        "rows": [{"name": "a", **row}],
        "runs": {},
    }
    assert (PIXELCNN, 1024) in asked and "– -> 1,234 cycles" in capsys.readouterr().out
    cuda_budget.main(["--recorded"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"budget": {"a": row}} and not printed.err
    (tmp_path / "cycles.json").write_text(json.dumps({**found, "kernels": "others"}))
    cuda_budget.main(["--recorded"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"budget": {"a": row}} and "before the kernels changed" in printed.err
    (tmp_path / "cycles.json").write_text(json.dumps({"compiler": "NVRTC 13.0", "cycles": {}}))
    cuda_budget.main(["--recorded"])
    printed = capsys.readouterr()
    assert not printed.out and printed.err.startswith("not recorded")

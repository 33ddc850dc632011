"""The sweep, rehearsed without a GPU, and the fit of the constants that it is for."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from column_steps import Planned
from gpu import sweep
from gpu.stage import printed_figures
from gpu.sweep import COLUMN_STEP, SHAPES, Row, refit

from pixelcnn_fast import Sampler
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.runtimes.cuda.cost import CONSTANTS, Constants
from pixelcnn_fast.runtimes.cuda.driver import Launch
from pixelcnn_fast.runtimes.cuda.kernels import Instance
from pixelcnn_fast.runtimes.cuda.runtime import CLUSTERS, CudaRuntime, Limits, Shape
from tests.needs import needs_native

H100 = 132
TRUE = Constants(1300.0, 400.0, 700.0, 650.0, 50.0, 30.0, 180.0)


def facts(records: int, weight_bytes: int, rows: int, cluster: int) -> dict:
    one = {"steps": 156, "records": records, "weight_bytes": weight_bytes, "value_bytes": 260_000 / records}
    return {"cluster": cluster, "rows": rows, "turns": 1, "sweeps": [one]}


def rows(by: Constants, noise: float = 0.0) -> list[Row]:
    """As the sweep has them, of a network with many weights and of one with few."""
    draw, found = random.Random(0), []
    for records, weight_bytes, sites in ((35, 5_500_000, 8), (20, 700_000, 5)):
        for images, cluster in SHAPES:
            for blocks in (cluster, H100 // cluster * cluster):
                row = Row(facts(records, weight_bytes // cluster, sites, cluster), images, blocks, H100, 0.0)
                found.append(row._replace(cycles=row.predicted(by) * (1 + noise * draw.uniform(-1, 1))))
    return found


def test_the_constants_that_made_the_rows_are_found():
    found = refit(rows(TRUE))
    assert found[:7] == pytest.approx(TRUE[:7], rel=0.01) and found.multiplied_fp32 == pytest.approx(64)
    assert all(row.predicted(found) == pytest.approx(row.cycles, rel=1e-3) for row in rows(TRUE))


def test_what_is_measured_is_not_exact():
    noisy = rows(TRUE, 0.05)
    found = refit(noisy)
    assert found.record == pytest.approx(TRUE.record, rel=0.15) and min(found) > 0
    assert max(abs(row.predicted(found) / row.cycles - 1) for row in noisy) < 0.1
    assert max(abs(row.predicted() / row.cycles - 1) for row in noisy) > 0.2


def test_what_no_row_depends_on_stays():
    found = refit([row for row in rows(TRUE) if row.facts["cluster"] == 1])
    assert found.hop == pytest.approx(CONSTANTS.hop) and found.record == pytest.approx(TRUE.record, rel=0.01)


class Counted(Planned):
    """Kernels that do nothing, of which as many clusters run at once as have multiprocessors."""

    def get(self, instance: Instance) -> Counted:
        return self

    def clusters_at_once(self, how: Launch) -> int:
        return 8 // how.cluster

    def launch(self, how: Launch, parameters: bytes, stream: int) -> None: ...


@pytest.fixture
def rehearsed(monkeypatch):
    """A GPU of 8 multiprocessors, on which each batch takes 0.1 s; -> of which the judge finds so many wrong."""
    wrong: set[int] = set()

    def runtime_of(model, shape, precision):
        sampler = Sampler(model, shape, precision=precision)
        found = sampler._engine.require_compiled()
        limits = Limits(227 << 10, 8, max(CLUSTERS))
        return CudaRuntime(
            found.program_for("cuda"), found.conditions, sampler.head, precision, Counted(), limits
        )

    def judged(model, images, noise, precision):
        assert images.shape == noise.shape and images.dtype == torch.uint8
        return SimpleNamespace(is_right=len(noise) not in wrong)

    small = random_model(hidden_channels=8, n_residual=1)
    gated = random_model(input_channels=1, hidden_channels=8, n_residual=1)
    values: dict[str, Any] = {
        "runtime_of": runtime_of,
        "judged": judged,
        "networks": lambda: iter((("PixelCNN", small, 8), ("other", gated, 5))),
        "stream_seconds": lambda call, repeats: 0.1 if call() is None else None,
        "cycles_a_second": lambda: 2e9,
        "SHAPES": [Shape(1), Shape(2), Shape(1, 2), Shape(1, 16)],
    }
    for name, value in values.items():
        monkeypatch.setattr(sweep, name, value)
    return wrong


@needs_native
def test_each_shape_is_measured_alone_and_with_as_many_as_there_can_be(rehearsed, capsys):
    assert sweep.main() == 0
    found = printed_figures(capsys.readouterr().out)
    shapes = ["1 in 1, 1 at once", "1 in 1, 8 at once", "2 in 1, 1 at once", "2 in 1, 8 at once"]
    shapes += ["1 in 2, 1 at once", "1 in 2, 4 at once"]  # and none of 16 blocks
    assert [*found["sweep"]] == [f"{name}, {shape}" for name in ("PixelCNN", "other") for shape in shapes]
    measured = {row["measured"] for name, row in found["sweep"].items() if name.startswith("PixelCNN")}
    (cycles,) = measured
    assert found["targets"] == {COLUMN_STEP: f"{cycles:,} cycles"}
    assert found["constants"].keys() == {*Constants._fields, "measured / predicted"}
    assert found["constants"]["record"]["now"] == CONSTANTS.record != found["constants"]["record"]["refitted"]


@needs_native
def test_wrong_images_are_said_and_not_fitted(rehearsed, capsys):
    rehearsed.add(1)  # of batches of one image
    assert sweep.main() == 1
    found = printed_figures(capsys.readouterr().out)
    assert found["sweep"]["PixelCNN, 1 in 1, 1 at once"]["failed"].startswith("wrong images")
    assert len(found["sweep"]["PixelCNN, 2 in 1, 1 at once"]) == 3 and "targets" not in found


def test_the_column_step_has_the_budgets_name():
    budget = pytest.importorskip("cuda_budget", reason="no benchmarks/cuda_budget.py")
    assert COLUMN_STEP in {row.name for row in budget.ROWS}

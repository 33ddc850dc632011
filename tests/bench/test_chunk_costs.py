"""Whether rows above should be summed for several columns at once: by figures of the program as it was planned."""

import pytest
from chunk_costs import Rows, milliseconds
from column_steps import PRIOR, SMALL, ColumnSteps

from pixelcnn_fast.models import GatedPixelCNN, PixelCNN
from pixelcnn_fast.runtimes.cuda.cost import cycles
from pixelcnn_fast.runtimes.cuda.runtime import Shape
from pixelcnn_fast.sampler import Sampler
from tests.csrc.test_cuda_runtime import needs_compiler
from tests.tiers import thorough

pytestmark = needs_compiler


@pytest.fixture
def steps(tmp_path) -> ColumnSteps:
    return ColumnSteps("90", tmp_path)


def test_a_chunk_of_one_column_is_what_was_planned(steps):
    runtime = steps.runtime(SMALL)
    planned = cycles(runtime.sampler(Shape(1)).facts, "bf16", 1, 1, 132)
    assert milliseconds(steps, SMALL, 1, 1) == pytest.approx(steps.rates.milliseconds(planned))


@thorough
def test_chunks_would_pay_where_weights_of_rows_above_are_many(steps):
    assert milliseconds(steps, SMALL, 1, 4) > milliseconds(steps, SMALL, 1, 1)
    assert milliseconds(steps, PRIOR, 1, 4) < 0.7 * milliseconds(steps, PRIOR, 1, 1)


def test_rows_above():
    """Of a masked 3x3 layer's 4 or 5 taps, 3; of a vertical stack, all."""
    plain = Rows.of(Sampler(PixelCNN(1, 16, 8).eval(), (1, 8, 8))._engine.require_compiled().program)
    gated = Rows.of(
        Sampler(GatedPixelCNN(1, 16, (1,) * 8).eval(), (1, 8, 8))._engine.require_compiled().program
    )
    assert 0.4 < plain.share < gated.share < 0.8
    assert plain.mixed_channels >= 8 * 16

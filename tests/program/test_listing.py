"""What a program costs, as its listing says it."""

import torch

from pixelcnn_fast.passes.pipeline import phased
from pixelcnn_fast.program.instructions import Convolution, FromLevels
from pixelcnn_fast.program.listing import ProgramListing
from pixelcnn_fast.program.operands import Tap
from pixelcnn_fast.program.program import Program
from tests.program.test_verify import wide


def test_costs_are_those_of_the_program() -> None:
    """In the row phase 1 × 4 weights, at each pixel 1 × 4 and 4 × 3; in float64, with pixel weights of 2 bytes."""
    listing = ProgramListing(wide(), "cpu", 2)
    assert (listing.row_flops, listing.pixel_flops) == (2 * 4, 2 * (4 + 12))
    assert listing.weight_bytes == 4 * 8 + (4 + 12) * 2
    assert sum(weight.numel() for weight in listing.weights) == 4 + 4 + 12
    # Of levels, two rows with a column to the left and two to the right; of the others a row; and one of sums.
    assert listing.workspace_bytes == 8 * (2 * (1 + 5 + 2) + 5 * (4 + 4 + 3) + 5 * 4)
    text = str(listing)
    assert text.startswith("program of runtime 'cpu', which 'auto' stands for here\n")
    assert "input                        1 ch = levels  (keeps 2 rows)" in text and "(keeps 1 row)" in text


def test_what_is_computed_between_draws_is_listed_by_draw() -> None:
    """The logits of a second image channel see the first of their own pixel."""
    one = torch.ones(1, 3, dtype=torch.float64)
    red, green = (
        FromLevels(at, 1, name, pick=torch.tensor([at])) for at, name in enumerate(("red", "green"))
    )
    first, second = (
        Convolution(2 + at, 3, name, (Tap(0, 0, at - 1, one), Tap(1, -1, 0, one)))
        for at, name in enumerate(("first", "second"))
    )
    text = str(phased(Program((2, 4, 5), 3, (red, green, first, second), (2, 3), torch.float64)))
    assert text.index("first") < text.index("after draw 1 of 2") < text.index("second")

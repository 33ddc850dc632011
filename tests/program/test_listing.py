"""What a program costs, as its listing says it."""

from __future__ import annotations

from pixelcnn_fast.program.listing import ProgramListing
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

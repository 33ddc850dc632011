"""What each ATen call does to feature maps.

A lowering is called for a call that has a feature map among its arguments, as (context, *args, **kwargs), and
returns the map that is its result, or a list of maps if it has several. It raises Unsupported if the call has no place
in a program. Calls that only move elements need none: they are made on the elements' addresses.
"""

from pixelcnn_fast.capture.lower.calls import channels, ends, pixels, pointwise, recurrences
from pixelcnn_fast.capture.lower.calls.levels import by_table, cast, has_table
from pixelcnn_fast.capture.lower.calls.registry import (
    FRESH,
    LOWERINGS,
    MASKED,
    MOVEMENTS,
    PLACES,
    LoweringContext,
)

TOPICS = (pointwise, pixels, channels, ends, recurrences)  # importing them fills the table, as levels does
__all__ = [
    "FRESH",
    "LOWERINGS",
    "MASKED",
    "MOVEMENTS",
    "PLACES",
    "LoweringContext",
    "by_table",
    "cast",
    "has_table",
]

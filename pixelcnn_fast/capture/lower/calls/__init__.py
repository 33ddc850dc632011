"""What each ATen call does to feature maps.

A lowering gets (context, *args, **kwargs) of a call with a feature map among its arguments,
and returns the resulting map or maps; it raises Unsupported if the call has no place in a
program. Calls that only move elements need none: they are made on addresses.
"""

from pixelcnn_fast.capture.lower.calls import channels, levels, pixels, pointwise, recurrences
from pixelcnn_fast.capture.lower.calls.registry import LOWERINGS

TOPICS = (channels, levels, pixels, pointwise, recurrences)  # importing them fills the table
__all__ = ["LOWERINGS"]

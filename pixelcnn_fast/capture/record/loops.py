"""Finds loops over pixels in what a forward has called."""

from __future__ import annotations

import math
from collections import defaultdict

from pixelcnn_fast.capture.record.recorder import Recording
from pixelcnn_fast.errors import Unsupported


def refuse_loops(recording: Recording, height: int, width: int) -> None:
    """Raises Unsupported if calls read or write parts of one map at as many places as there are pixels. A program
    would hold all of these calls."""
    if recording.images is None or min(height, width) == 1:
        return
    of_image, places = {recording.images.slot}, defaultdict[int, set[object]](set)
    pixels, map_size = height * width, recording.n * height * width
    for call in recording.calls:
        if of_image.isdisjoint(call.read):
            continue
        of_image |= call.written
        for view in (*call.inputs, *call.outputs):
            whole = recording.whole.get(view.slot)
            if whole is None or math.prod(whole.at(recording.n)[0]) < map_size:
                continue
            size = list(view.at(recording.n)[0])
            if height in size:
                size.remove(height)
                if width in size:
                    continue
            places[view.slot].add(view.offset)
            if len(places[view.slot]) >= pixels - 1:  # the last one is not always read
                raise Unsupported(
                    f"cannot sample from this model: {call.where}: a loop over pixels, one after another: compute all "
                    "at once, by convolutions, unfold, or the recurrent layers of pixelcnn_fast.nn. If the loop draws "
                    "the image, pass the module that it calls, which gives logits for a whole image"
                )

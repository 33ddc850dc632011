"""In tests every program is verified after every pass."""

from __future__ import annotations

from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.program.verify import verify

pipeline.always_watch = lambda name, program: verify(program)

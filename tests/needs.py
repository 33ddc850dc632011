"""What a test needs that a machine may lack: it is skipped there, and says why."""

from __future__ import annotations

import pytest

from pixelcnn_fast import native

needs_native = pytest.mark.skipif(native.native() is None, reason=native.why_not_native())
RUNTIMES = ["eager", pytest.param("cpu", marks=needs_native)]

"""Tests of the documentation, whose pages are partly generated."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

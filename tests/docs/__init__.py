"""Tests of the documentation, whose pages are partly generated."""

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

"""What was rewritten in a model's graphs, and what was left and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Report:
    """It fills at each compilation. rewritten, left: by what became of a call, or why it was left, and the line of the
    model's code, how often. warnings: what else there is to know."""

    def __init__(self) -> None:
        self.rewritten: Counter[tuple[str, str]] = Counter()
        self.left: Counter[tuple[str, str]] = Counter()
        self.warnings: list[str] = []

    def rewrite(self, what: str, op: str, where: str) -> None:
        """Takes note of a rewrite, which another pass may have left."""
        self.rewritten[f"{what} → {op}", where] += 1
        for text, place in list(self.left):
            if place == where and text.startswith(f"{what}: "):
                self.left[text, place] -= 1
        self.left = +self.left

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Forgets what was rewritten and left in this context, if it ends with an error."""
        before = self.rewritten.copy(), self.left.copy()
        try:
            yield
        except Exception:
            self.rewritten, self.left = before
            raise

    def __str__(self) -> str:
        lines = [
            f"{title:<10} {what}{f' ({times} times)' if times > 1 else ''}: {where}"
            for title, found in (("rewritten", self.rewritten), ("left", self.left))
            for (what, where), times in found.items()
        ]
        lines += [f"{'note':<10} {text}" for text in self.warnings]
        return "\n".join(lines) or "nothing was compiled yet, or there was nothing to rewrite"

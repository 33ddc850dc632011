"""What was rewritten in a model's graphs, and what was left and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Report:
    """It fills at each compilation. rewritten, left: how often a call became
    something, or was left for a reason, on a line of the model's code. warnings:
    what else there is to know."""

    def __init__(self) -> None:
        self.rewritten: Counter[tuple[str, str]] = Counter()
        self.left: Counter[tuple[str, str]] = Counter()
        self.warnings: list[str] = []

    def rewrite(self, what: str, op: str, where: str) -> None:
        """Notes a rewrite, also of what another pass has left."""
        self._take_back(what, where)
        self.rewritten[f"{what} → {op}", where] += 1

    def leave(self, what: str, why: str, where: str) -> None:
        """Says better why a call is left, if another pass has left it."""
        if self._take_back(what, where):
            self.left[f"{what}: {why}", where] += 1

    def _take_back(self, what: str, where: str) -> bool:
        found = [key for key in self.left if key[1] == where and key[0].startswith(f"{what}: ")]
        for key in found:
            self.left[key] -= 1
        self.left = +self.left
        return bool(found)

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

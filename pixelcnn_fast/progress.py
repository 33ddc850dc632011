"""Progress bars, which need tqdm only where one is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class Hidden:
    """A bar that shows nothing, with what is used of tqdm's interface."""

    n = 0

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __enter__(self) -> Hidden:
        return self

    def __exit__(self, *error: object) -> None: ...

    def update(self, n: float = 1) -> None: ...

    def set_description(self, text: str) -> None: ...


def progress_bar(items: Iterable[Any] = (), *, shown: bool, **options: Any) -> Hidden:
    """options: those of tqdm."""
    if not shown:
        return Hidden(items)
    from tqdm import tqdm

    return tqdm(items, **options)  # type: ignore[return-value]  # it has all that Hidden has

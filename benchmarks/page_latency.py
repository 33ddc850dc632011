"""How soon the live demo's page shows 16 completions, in Chromium: python benchmarks/page_latency.py

From a pointer event, by the browser's clock, until the frame with all completions is painted: for single moves of a pen
that waits for each answer, and for a pen that keeps moving, whose later strokes supersede earlier ones.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from playwright.sync_api import Page, sync_playwright

from pixelcnn_fast.bench import quiet

MOVES = 20
FRAME = 1 / 60  # seconds
PATIENCE = 60_000  # milliseconds
WATCH = """() => {
  shown = [];
  new MutationObserver(() => shown.push([+status.dataset.id, +status.dataset.milliseconds]))
    .observe(status, {attributeFilter: ["data-milliseconds"]});
}"""


def arc(page: Page) -> Iterator[tuple[float, float]]:
    """Places on the screen: an upper half of an 8, round and round."""
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    k = 0
    while True:
        x, y = 14 + 4.5 * math.sin(k / 3), 9 - 4 * math.cos(k / 3)
        yield box["x"] + x / 28 * box["width"], box["y"] + y / 28 * box["height"]
        k += 1


def measured(page: Page, moves: int) -> tuple[list[float], list[float]]:
    """-> milliseconds of each answered stroke, of single moves and of a moving pen. page: the demo's, loaded."""
    page.evaluate(WATCH)
    places = arc(page)
    page.mouse.move(*next(places))
    page.mouse.down()
    found: list[list[float]] = []
    for _ in range(2):
        page.wait_for_function("shown.at(-1)?.[0] == id", timeout=PATIENCE)
        page.evaluate("shown.length = 0")
        for _ in range(moves):
            page.mouse.move(*next(places))
            if not found:
                page.wait_for_function("shown.at(-1)?.[0] == id", timeout=PATIENCE)
            else:
                time.sleep(FRAME)
        page.wait_for_function("shown.at(-1)?.[0] == id", timeout=PATIENCE)
        found.append([milliseconds for _, milliseconds in page.evaluate("shown")])
        moves *= 5
    page.mouse.up()
    return found[0], found[1]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    command = [sys.executable, "-m", "pixelcnn_fast", "demo", "--web", "--no-browser", "--port", "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        try:
            assert server.stdout is not None
            address = server.stdout.readline().partition(" ")[0]
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page()
            page.goto(address)
            page.get_by_text("ready").wait_for()
            taken = quiet.awaited()
            single, moving = measured(page, MOVES)
            browser.close()
        finally:
            server.terminate()
    print(f"others take {'an unknown number of' if taken is None else f'{taken:.1f}'} cores")
    for name, found in (("single moves", single), ("a moving pen", moving)):
        print(f"{name}: median {median(found):.0f} ms, worst {max(found):.0f} ms of {len(found)}")


if __name__ == "__main__":
    main()

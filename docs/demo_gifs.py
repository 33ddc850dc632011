"""Films the live demo in Chromium, into docs/demo.gif and docs/pixel_by_pixel.gif.

python -m pixelcnn_fast demo --web --no-browser &
python docs/demo_gifs.py http://127.0.0.1:8028
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pixelcnn_fast.pictures import save_gif

FOLDER = Path(__file__).parent
# Upper halves of a 2 and an 8, in pixels of the drawing.
STROKES = [
    [(9, 9), (10, 7), (12, 5.5), (14, 5), (16.5, 5.5), (18, 7.5), (18, 10), (16.5, 12), (15, 14)],
    [(17.5, 6.5), (15, 5), (12.5, 5), (11, 6.5), (11, 8.5), (12.5, 10.5), (14.5, 12), (16, 14)],
    [(17.5, 6.5), (18, 8.5), (16.5, 10.5), (14.5, 12), (12.5, 14)],
]
STEPS = 2  # of the pen, between two places
REPLAYED = 56  # frames, a quarter of a row each
PATIENCE = 60_000  # milliseconds
COLOURS = 32


def frame(page: Page, selector: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB"))


def drawn(page: Page) -> list[np.ndarray]:
    """The page while strokes are drawn, a frame for each answer."""
    frames: list[np.ndarray] = []
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    for k, stroke in enumerate(STROKES):
        if k == 1:
            frames += [frames[-1]] * 10
            page.get_by_role("button", name="Clear").click()
        places = [(box["x"] + x / 28 * box["width"], box["y"] + y / 28 * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for (x0, y0), (x1, y1) in zip(places, places[1:], strict=False):
            for step in range(1, STEPS + 1):
                t = step / STEPS
                page.mouse.move(x0 + t * (x1 - x0), y0 + t * (y1 - y0))
                page.wait_for_function("status.dataset.id == id", timeout=PATIENCE)
                frames.append(frame(page, "main"))
        page.mouse.up()
    return frames


def replayed(page: Page) -> list[np.ndarray]:
    """The page's completions, pixel by pixel."""
    page.evaluate("requestAnimationFrame = next => { later = next; return 1; }; start = performance.now()")
    page.get_by_role("button", name="Show pixel by pixel").click()
    frames = []
    for k in range(1, REPLAYED + 1):
        page.evaluate(f"later(start + REPLAY * {k} / {REPLAYED} + 99)")
        frames.append(frame(page, "#completions"))
    return frames


def main(address: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 720, "height": 640})
        page.goto(address)
        page.get_by_text("ready").wait_for()
        save_gif(drawn(page), FOLDER / "demo.gif", 80, COLOURS)
        save_gif(replayed(page), FOLDER / "pixel_by_pixel.gif", 60, COLOURS)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

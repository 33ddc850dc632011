"""The live demo in Chromium: a stroke, by mouse and by touch, is completed on the page while the pen is down."""

import os
import shutil
import threading
from collections.abc import Iterator

import pytest

from pixelcnn_fast import Sampler
from pixelcnn_fast.bench.workload import random_model
from tests.processes import PATIENCE, TINY
from tests.tiers import thorough

CHROMIUM = shutil.which("chromium")
if not os.environ.get("PAGE_IS_TESTED"):  # .ci/run says so: there, what is missing is an error
    for package in ("starlette", "uvicorn", "websockets", "playwright"):
        pytest.importorskip(package)
    if CHROMIUM is None:
        pytest.skip("chromium is not installed", allow_module_level=True)

import page_latency  # noqa: E402
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from pixelcnn_fast.web import server  # noqa: E402
from pixelcnn_fast.web.server import KNOWN, SIZE  # noqa: E402

pytestmark = thorough

# In the page: a canvas's levels, all canvases of completions, and how many of these are not black.
SCRIPT = """
    levelsOf = canvas => [...canvas.getContext("2d").getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 == 0);
    found = () => [...document.querySelectorAll("#completions canvas")].map(levelsOf);
    lit = () => found().filter(levels => levels.some(level => level)).length;
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    sampler = Sampler(random_model(n_classes=10, **TINY), (1, SIZE, SIZE))
    with server.listening("127.0.0.1", 0) as socket:
        served = server.server(lambda stroke: server.completions(sampler, stroke))
        thread = threading.Thread(target=served.run, kwargs=dict(sockets=[socket]))
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        served.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without its sandbox, as containers run tests as root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """The page in a window whose width and colour scheme the test gives; an error in its script fails the test."""
    width, scheme = request.param
    errors: list[str] = []
    with browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, has_touch=True
    ) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(SCRIPT)
        page.goto(address)
        page.get_by_text("ready").wait_for()
        yield page
    assert errors == []


def drawing(page: Page) -> list[int]:
    return page.evaluate("levelsOf(drawing)")


def completions(page: Page) -> list[list[int]]:
    return page.evaluate("found()")


def inside(page: Page, x: float, y: float) -> tuple[float, float]:
    """The place on the screen of pixel x, y of the drawing."""
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    return box["x"] + x / SIZE * box["width"], box["y"] + y / SIZE * box["height"]


def wait_for_completions(page: Page) -> None:
    page.wait_for_function("lit() == 16", timeout=PATIENCE * 1000)


@pytest.mark.parametrize("page", [(390, "dark"), (1280, "light")], indirect=True)
def test_completions_are_painted_while_the_pen_is_down(page: Page) -> None:
    assert page.evaluate("lit()") == 0
    page.mouse.move(*inside(page, 8, 5))
    page.mouse.down()
    page.mouse.move(*inside(page, 20, 5))
    wait_for_completions(page)
    known = drawing(page)[: KNOWN * SIZE]
    rows = [known[y * SIZE + 8 : y * SIZE + 20] for y in range(KNOWN)]
    assert min(rows[4] + rows[5]) > 128 and max(rows[2] + rows[8]) == 0  # the stroke is as wide as a digit's
    same = "known => found().every(levels => String(levels.slice(0, known.length)) == String(known))"
    page.wait_for_function(same, arg=known)
    page.mouse.move(*inside(page, 20, 25))  # into the lower half, where the model draws
    page.mouse.up()
    page.get_by_text("after your last move").wait_for()
    content, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert content <= window

    page.get_by_role("button", name="Clear").click()
    assert page.evaluate("lit()") == 0 and not any(drawing(page))


@pytest.mark.parametrize("page", [(390, "light")], indirect=True)
def test_a_touch_draws_and_the_order_of_pixels_is_shown(page: Page) -> None:
    touched = page.context.new_cdp_session(page)
    for event, y in (("touchStart", 12), ("touchMove", 10), ("touchMove", 6), ("touchMove", 2)):
        left, top = inside(page, 14, y)
        points = [{"x": left, "y": top}]
        touched.send("Input.dispatchTouchEvent", {"type": event, "touchPoints": points})
    wait_for_completions(page)
    touched.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    drawn = drawing(page)
    assert all(drawn[y * SIZE + 14] > 128 for y in range(2, 12)) and page.evaluate("scrollY") == 0
    page.wait_for_function("status.dataset.id == id", timeout=PATIENCE * 1000)
    finished = completions(page)
    page.evaluate("requestAnimationFrame = next => { later = next; return 1; }")
    page.get_by_role("button", name="Show pixel by pixel").click()
    page.evaluate("later(performance.now() + REPLAY / 2)")
    for levels, whole in zip(completions(page), finished, strict=True):
        marked = next(i for i in range(SIZE * SIZE) if levels[i] != whole[i])
        assert KNOWN * SIZE < marked < SIZE * SIZE - 1 and not any(levels[marked + 1 :])
    page.evaluate("later(performance.now() + 2 * REPLAY)")
    assert completions(page) == finished


@pytest.mark.parametrize("page", [(1280, "dark")], indirect=True)
def test_class_temperature_and_noise_change_the_completions(page: Page) -> None:
    page.touchscreen.tap(*inside(page, 14, 7))
    wait_for_completions(page)
    seen = completions(page)

    def differ() -> None:
        nonlocal seen
        page.wait_for_function(
            "seen => String(found()) != seen", arg=",".join(str(x) for y in seen for x in y)
        )
        seen = completions(page)

    page.get_by_label("Class").fill("3")
    differ()
    page.get_by_label("Temperature").fill("1.2")
    differ()
    page.get_by_role("button", name="Draw others").click()
    differ()


@pytest.mark.parametrize("page", [(1280, "light")], indirect=True)
def test_the_measurement_counts_each_move_that_is_answered(page: Page) -> None:
    single, moving = page_latency.measured(page, 3)
    assert len(single) == 3 and 1 <= len(moving) <= 15 and min(single + moving) > 0

"""The page in headless Chromium, with a policy that would let nothing else be fetched."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from eval import page

api = pytest.importorskip("playwright.sync_api", reason="the browser's tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

NASTY = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "</script><b>bold</b>",
    "e" + 80 * "\u0301",
]


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        # The machine's own, or what `playwright install chromium` put there; nothing is downloaded here.
        path = CHROMIUM or playwright.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip("the browser's tests need Chromium")
        try:
            opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:  # such as the one that only tells to install a snap
            pytest.skip(f"{path} does not start: {error.message.splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def html(toy_in, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    gone = {2: "images/" + "x" * 200 + ".png"}
    now, then = (
        toy_in(folder, name=name, seed=seed, noise=1.5, captions=NASTY * 3, files=gone)
        for seed, name in enumerate(["now", "before"])
    )
    return page.write(now, folder / "page.html", since=then)[0]


class Opened:
    """A page with what it asked for and complained of."""

    def __init__(self, browser, html: Path, **options) -> None:
        self.context = browser.new_context(**options)
        self.tab = self.context.new_page()
        self.said: list[str] = []
        self.requested: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.requested.append(request.url))
        # The player is no part of the document.
        self.tab.add_init_script(
            "window.players = [];"
            "window.Audio = class extends Audio { constructor() { super(); players.push(this); } };"
        )
        self.tab.goto(html.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.context.close()


def cards(tab) -> int:
    return tab.locator(".card:visible").count()


def test_no_complaint_no_request_and_no_script_from_a_caption(browser, html):
    with Opened(browser, html) as opened:
        opened.tab.wait_for_timeout(200)
        assert opened.said == []
        assert [url for url in opened.requested if not url.startswith("data:")] == [html.as_uri()]
        assert opened.tab.evaluate("window.hacked") is None
        assert "<script>window.hacked = 1</script>" in opened.tab.locator("#gallery").inner_text()


def test_the_policy_stops_a_script_and_a_request(browser, html):
    with Opened(browser, html) as opened:
        opened.tab.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.hacked = 1";
                document.body.append(script);
                const image = new Image();
                image.src = "https://example.invalid/x.png";
                document.body.append(image);
            }"""
        )
        opened.tab.wait_for_timeout(200)
        assert opened.tab.evaluate("window.hacked") is None
        assert sum("Content Security Policy" in line for line in opened.said) == 2


def test_filters_narrow_the_gallery_and_say_how_many_are_left(browser, html):
    with Opened(browser, html) as opened:
        tab = opened.tab
        total = tab.locator(".card").count()
        assert 0 < cards(tab) < total  # one direction to begin with
        tab.get_by_role("combobox", name="Direction").select_option("")
        assert cards(tab) == total
        tab.get_by_role("combobox", name="Examples").select_option("worst")
        worst = cards(tab)
        assert 0 < worst < total
        assert tab.get_by_role("status").inner_text() == f"{worst} of {total} examples"
        tab.get_by_role("combobox", name="Rank").select_option("1")
        assert cards(tab) == 0
        assert tab.get_by_text("No example is like that.").is_visible()
        tab.get_by_role("combobox", name="Examples").select_option("")
        assert all(
            rank == "1" for rank in tab.locator(".card:visible").evaluate_all("all => all.map(c => c.dataset.rank)")
        )
        tab.get_by_role("combobox", name="Rank").select_option("")
        tab.get_by_role("searchbox").fill("CAPTION 0 of scene 7")
        assert 0 < cards(tab) < total


def test_a_sound_plays_to_its_end(browser, html):
    with Opened(browser, html) as opened:
        tab = opened.tab
        tab.get_by_role("combobox", name="Direction").select_option("image-to-audio")
        short = tab.locator(".card:visible .play", has_text="0.2 s").first
        short.click()
        assert short.get_attribute("aria-pressed") == "true"
        api.expect(short).to_have_attribute("aria-pressed", "false")
        assert tab.evaluate("players[0].ended && players[0].currentTime > 0.1")
        assert opened.said == []


def test_a_second_click_stops_a_sound_and_another_sound_takes_its_place(browser, html):
    with Opened(browser, html) as opened:
        tab = opened.tab
        tab.get_by_role("combobox", name="Direction").select_option("")
        long = tab.locator(".card:visible .play", has_text="first 4.0 s")
        long.first.click()
        long.last.click()
        assert [one.get_attribute("aria-pressed") for one in (long.first, long.last)] == ["false", "true"]
        long.last.click()
        assert long.last.get_attribute("aria-pressed") == "false"
        assert tab.evaluate("players[0].paused")


def test_pictures_are_drawn(browser, html):
    with Opened(browser, html) as opened:
        shot = opened.tab.locator(".card:visible .hits .picture").first.screenshot()
    with Image.open(io.BytesIO(shot)) as image:
        _, green, blue = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    assert (green, blue) == pytest.approx((90, 160), abs=8)  # what the conftest paints every picture with


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 1920])
def test_nothing_sticks_out_of_the_screen(browser, html, width):
    with Opened(browser, html, viewport={"width": width, "height": 740}) as opened:
        opened.tab.get_by_role("combobox", name="Direction").select_option("")
        assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_sticks_out_of_its_place_in_a_card(browser, html):
    with Opened(browser, html, viewport={"width": 360, "height": 740}) as opened:
        tab = opened.tab
        tab.get_by_role("combobox", name="Direction").select_option("")
        missing = tab.locator(".hits.image > * > .missing:visible", has_text="xxx")
        rooms = missing.evaluate_all(
            """all => all.map(one => {
                const [above, own, below] = [one.previousElementSibling, one, one.nextElementSibling]
                    .map(each => each.getBoundingClientRect());
                return Math.min(own.top - above.bottom, below.top - own.bottom);
            })"""
        )
        assert rooms
        assert min(rooms) >= 0
        clipped = "all => all.every(one => getComputedStyle(one).overflowY === 'clip')"
        assert tab.locator(".caption:visible").evaluate_all(clipped)


def test_a_printed_page_is_light_and_as_wide_as_the_paper(browser, html):
    with Opened(browser, html, viewport={"width": 718, "height": 1000}, color_scheme="dark") as opened:
        tab = opened.tab
        tab.get_by_label("Dark").check(force=True)
        tab.emulate_media(media="print")
        assert tab.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
        assert tab.evaluate("document.documentElement.scrollWidth") <= 718
        assert not tab.locator("nav").is_visible()


def test_colours_follow_the_system_and_the_switch(browser, html):
    def paper(tab):
        red, *_ = re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        return int(red)

    with Opened(browser, html, color_scheme="light") as opened:
        assert paper(opened.tab) > 200
        opened.tab.get_by_label("Dark").check(force=True)
        assert paper(opened.tab) < 60
    with Opened(browser, html, color_scheme="dark") as opened:
        assert paper(opened.tab) < 60
        opened.tab.get_by_label("Light").check(force=True)
        assert paper(opened.tab) > 200


def test_the_map_shows_what_its_boxes_say(browser, html):
    with Opened(browser, html) as opened:
        tab = opened.tab
        assert tab.locator(".chart .by-modality:visible").count() == 3
        tab.get_by_role("checkbox", name=re.compile("^audio")).uncheck()
        assert tab.locator(".chart .by-modality:visible").count() == 2
        tab.get_by_role("radio", name="class").check()
        assert tab.locator(".chart .by-modality:visible").count() == 0
        assert tab.locator(".chart .by-label.class-0:visible").count() == 2


def test_the_keyboard_reaches_the_skip_link_the_filters_and_the_sounds(browser, html):
    with Opened(browser, html) as opened:
        tab = opened.tab
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        reached = set()
        for _ in range(120):
            tab.keyboard.press("Tab")
            reached.add(tab.evaluate("document.activeElement.name || document.activeElement.className"))
        assert {"theme", "scroll", "direction", "kind", "rank", "text"} <= reached


def test_without_javascript_all_of_it_is_there(browser, html):
    with Opened(browser, html, java_script_enabled=False) as opened:
        assert cards(opened.tab) == opened.tab.locator(".card").count()
        assert opened.tab.get_by_text("Filters and sounds need JavaScript").is_visible()
        assert not opened.tab.locator(".filters").is_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_nothing_to_complain_of(browser, html, scheme, width):
    axe = pytest.importorskip("axe_playwright_python", reason="the accessibility check needs axe-playwright-python")
    code = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    # The page's own policy would refuse axe.
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "bypass_csp": True}
    with Opened(browser, html, **options) as opened:
        opened.tab.evaluate(code)
        opened.tab.evaluate("document.querySelectorAll('details').forEach(one => (one.open = true))")
        found = opened.tab.evaluate("axe.run({resultTypes: ['violations']})")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []

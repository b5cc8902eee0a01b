"""The report in a real browser: requests, errors, filters, links and accessibility."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Command

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")


@pytest.fixture(scope="module")
def page_file(mtil: Command, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a training with three passes on two folds of phantoms."""
    folder = tmp_path_factory.mktemp("report")
    for words in (
        ("prepare", images, "--layout", "busi", "--to", folder / "data", "--image-size", "96",
         "--num-folds", "3"),
        ("train", "--local", "--data", folder / "data", "--run", folder / "run", "--config", "demo",
         "--fold", "0,1", "--train.num-epochs", "1", "--circle.maps", "recycle",
         "--data.image-size", "32", "--model.encoder.name", "resnet10_tiny",
         "--model.encoder.pretrained", "false",
         "--zoom.num-windows", "1"),
        ("evaluate", "--local", "--run", folder / "run"),
        ("report", folder / "run", "--to", folder / "report.html"),
    ):  # fmt: skip
        done = mtil(*words)
        assert done.returncode == 0, done.stderr
    return folder / "report.html"


@pytest.fixture(scope="module")
def real_pages(
    mtil: Command, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Report of a circle on BUSI with 2 folds and 2 rounds, and audit page of both collections."""
    folder = tmp_path_factory.mktemp("real")
    for words in (
        ("prepare", real_data / "busi/Dataset_BUSI_with_GT", "--layout", "busi", "--groups",
         real_data / "busi/pawlowska_groups.csv", "--to", folder / "data", "--image-size", "64"),
        ("circle", "--data", folder / "data", "--run", folder / "run", "--config", "demo",
         "--folds", "0,1", "--circle.num-rounds", "2", "--train.num-epochs", "1",
         "--train.cpus-per-worker", "0.75", "--data.image-size", "32",
         "--model.encoder.name", "resnet10_tiny", "--model.encoder.pretrained", "false"),
        ("report", folder / "run", "--to", folder / "report.html"),
        ("prepare", real_data / "bus-bra-256/BUSBRA", "--layout", "bus_bra", "--append",
         "--to", folder / "data"),
        ("inspect", folder / "data", "--to", folder / "audit.html"),
    ):  # fmt: skip
        done = mtil(*words)
        assert done.returncode == 0, done.stderr
    return {"circle": folder / "report.html", "audit": folder / "audit.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium."""
    with playwright.sync_playwright() as started:
        # Root has no sandbox.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, page_file: Path) -> Iterator[Any]:
    """Open pages. A page must request no further file and print no console message."""
    contexts, requests, messages = [], [], []
    files: set[str] = set()

    def go(fragment: str = "", file: Path = page_file, **options: Any) -> Any:
        files.add(f"file://{file}")
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(f"file://{file}{fragment}")
        return page

    yield go
    for context in contexts:
        context.close()
    assert {url.partition("#")[0] for url in requests if not url.startswith("data:")} == files
    assert messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_page_is_accessible_and_fits(open_page: Any, scheme: str, width: int) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    check_access(page, width)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["circle", "audit"])
def test_pages_of_real_images_are_accessible_and_fit(
    open_page: Any, real_pages: dict[str, Path], name: str, scheme: str
) -> None:
    assert real_pages[name].stat().st_size < 30e6
    for width in (390, 1440):
        page = open_page(
            file=real_pages[name],
            color_scheme=scheme,
            viewport={"width": width, "height": 900},
        )
        check_access(page, width)


def test_the_report_of_a_real_circle(
    mtil: Command, open_page: Any, real_pages: dict[str, Path]
) -> None:
    file = real_pages["circle"]
    done = mtil("evaluate", "--run", file.parent / "run", "--json")
    result = json.loads(done.stdout)
    page = open_page(file=file)
    assert page.locator("article").count() == result["num_images"]
    page.select_option("select[name=label]", "normal")
    assert page.locator("article:visible").count() == result["by_class"]["normal"]["count"]
    malignant = page.locator("article[data-label=malignant]").first
    link = page.evaluate(
        "href => new URL(href, location.href).hash", f"#{malignant.get_attribute('id')}"
    )
    again = open_page(link, file=file)
    assert again.evaluate("document.activeElement.id") == malignant.get_attribute("id")
    layers = page.locator("select[name=layer] option")
    keys = layers.evaluate_all("options => options.map(option => option.value)")
    assert {"outlines-0", "outlines-1", "map-0", "map-1"} < set(keys)  # a pass per round


def check_access(page: Any, width: int) -> None:
    """Check a page with axe, and check that the content fits the width of the window."""
    found = axe.Axe().run(page).response["violations"]
    assert [fault["id"] for fault in found if fault["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_filters_choose_and_sort_images(open_page: Any) -> None:
    page = open_page()
    total = page.locator("article").count()
    assert total == 60
    page.select_option("select[name=label]", "malignant")
    shown = page.locator("article:visible")
    labels = shown.evaluate_all("cards => cards.map(card => card.dataset.label)")
    assert 0 < len(labels) < total
    assert set(labels) == {"malignant"}
    assert page.inner_text("#count") == f"{len(labels)} of {total} images"
    for sort, sign in (("dice", 1), ("-dice", -1)):
        page.select_option("select[name=sort]", sort)
        values = shown.evaluate_all("cards => cards.map(card => Number(card.dataset.dice))")
        assert values == sorted(values, key=lambda value: sign * value)
    page.select_option("select[name=label]", "")
    page.fill("input[name=find]", "BENIGN (1)")
    assert page.inner_text("#count") == f"1 of {total} images"


def test_a_choice_of_images_has_an_address(open_page: Any) -> None:
    page = open_page()
    page.select_option("select[name=label]", "malignant")
    page.select_option("select[name=sort]", "-dice")
    address = page.evaluate("location.hash")
    ids = page.locator("article:visible").evaluate_all("cards => cards.map(card => card.id)")
    again = open_page(address)
    assert again.locator("article:visible").evaluate_all("cards => cards.map(c => c.id)") == ids
    again.select_option("select[name=label]", "")
    again.select_option(
        "select[name=sort]",
        again.evaluate("document.querySelector('select[name=sort]').options[0].value"),
    )
    assert again.evaluate("location.hash") == ""
    # Wrong addresses hide no image.
    for wrong in ("#images?label=%3Cimg%20src%3Dx%3E&sort=__proto__", "#images?constructor=1"):
        page = open_page(wrong)
        assert page.locator("article:visible").count() == page.locator("article").count()


def test_layers_change_the_pictures(open_page: Any) -> None:
    page = open_page()
    layer = page.locator("article:visible .layer").first
    layer.scroll_into_view_if_needed()  # the browser decodes only images in view
    anchor = page.locator("article:visible").first.get_attribute("id")
    stored = json.loads(page.locator("#layers").text_content())[anchor]
    options = page.locator("select[name=layer] option").all()
    keys = [option.get_attribute("value") for option in options]
    assert sorted(keys) == sorted(["", *stored])
    assert {"outlines-0", "outlines-2", "map-1", "evidence"} < stored.keys()
    for key in keys:
        page.select_option("select[name=layer]", key)
        assert layer.is_visible() == bool(key)
        if key:
            assert layer.get_attribute("src") == stored[key]
            page.wait_for_function("image => image.naturalWidth > 0", arg=layer.element_handle())


def test_a_link_leads_to_an_image_even_if_a_filter_hides_it(open_page: Any) -> None:
    page = open_page("#image-benign%20%281%29")
    assert page.evaluate("document.activeElement.dataset.id") == "benign (1)"
    page.select_option("select[name=label]", "malignant")
    assert page.locator("article[data-id='benign (1)']").is_hidden()
    page.evaluate("location.hash = ''")
    page.evaluate("location.hash = '#image-benign%20%281%29'")
    page.wait_for_function("document.activeElement.dataset.id === 'benign (1)'")
    assert page.locator("article[data-id='benign (1)']").is_visible()


def test_the_keyboard_reaches_content_and_controls(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    page.focus("select[name=label]")
    page.keyboard.press("ArrowDown")
    assert page.locator("article:visible").count() < page.locator("article").count()

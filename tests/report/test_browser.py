"""The pages in a real browser: Debian's chromium, driven by Playwright, without a network."""

import json

import pytest
from support.axe import violations
from support.made_results import CLASSNAMES, Results
from support.pages import BOTH_KINDS, write, write_audit, write_metrics, write_unknown
from support.visits import visiting

from latteclip.config.sections.table import TableSection
from latteclip.report import index_results as index


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("made"), classnames=[*CLASSNAMES, "x" * 90])


@pytest.fixture(scope="module")
def files(results, tmp_path_factory):
    """The pages of a dataset with labels and of one without, and the page over all datasets."""
    selection = results.folder / "chosen.json"
    told = {
        "dataset": "made",
        "method": "flyp",
        "seed": 0,
        "reason": "flyp agrees with all votes.",
    }
    selection.write_text(json.dumps(told))
    names = results.classnames
    options = {"captions": BOTH_KINDS, "selection": str(selection)}
    write(results, **options)
    without = Results(
        tmp_path_factory.mktemp("unlabelled"), classnames=names, labelled=False
    )
    write(without, unknown=write_unknown(without), **options)
    paths = [
        write_metrics(
            results.folder, f"dataset_{number}", method, 0, 0.1 * number + 0.01 * place
        )
        for number in range(1, 6)
        for place, method in enumerate(f"a_method_with_a_long_name_{i}" for i in range(8))
    ]
    settings = index.IndexSettings(
        table=TableSection(baseline="a_method_with_a_long_name_0")
    )
    other = results.folder / "other.json"
    other.write_text(
        json.dumps({**told, "dataset": "dataset_1", "method": settings.table.baseline})
    )
    audit = write_audit(results.folder, "dataset_1", [settings.table.baseline])
    index.index_results(
        paths, [str(other)], [audit], settings, str(results.folder / "index.html")
    )
    pages = {name: results.folder / f"{name}.html" for name in ("report", "index")}
    return {**pages, "unlabelled": without.folder / "report.html"}


@pytest.fixture
def visit(browser, files):
    """Opens a page from its file; afterwards it must have complained of nothing."""
    seen = []
    with visiting(browser) as opened_page:

        def open_page(name="report", **options):
            page = opened_page("about:blank", offline=True, **options)
            page.on("request", lambda request: seen.append(request.url))
            page.goto(files[name].as_uri())
            return page

        yield open_page
    assert [url for url in seen if not url.startswith(("file:", "data:"))] == []


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(visit):
    page = visit()

    def gains():
        cells = page.locator("#headline tbody tr > :nth-child(4)").all()
        return [float(cell.get_attribute("data-value")) for cell in cells]

    heading = page.locator("#headline th", has_text="over zero-shot")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert gains() == sorted(gains(), reverse=True)
    heading.locator("button").press("Enter")
    assert gains() == sorted(gains())


def test_every_picture_decodes(visit):
    page = visit()
    widths = page.evaluate(
        "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert len(widths) == 12
    assert min(widths) > 0


def opened(page):
    """A page with all that it folds away."""
    for item in page.locator("details").all():
        item.evaluate("item => item.open = true")
    return page


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
@pytest.mark.parametrize("name", ["report", "unlabelled", "index"])
def test_nobody_is_kept_out_and_nothing_is_wider_than_the_window(
    visit, axe, name, width, scheme
):
    page = opened(visit(name, width=width, color_scheme=scheme))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (brightness > 600) == (scheme == "light")
    assert violations(page, axe) == []


def test_the_command_of_an_audit_is_copied_by_the_keyboard(visit):
    page = visit("unlabelled", permissions=["clipboard-read", "clipboard-write"])
    button = page.locator("#next").get_by_role("button", name="Copy the command").first
    button.press("Enter")
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "latteclip audit results/made"


def test_without_a_script_the_page_is_complete(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("#headline tbody tr").count() == 3
    assert page.locator("#headline th button").count() == 0
    assert not page.locator("#provenance .facts").is_visible()
    page.locator("#provenance > details > summary").press("Enter")
    assert page.locator("#provenance .facts").is_visible()
    page.locator("details.card summary").first.click()
    assert page.locator("details.card").first.locator("text=Image caption").is_visible()

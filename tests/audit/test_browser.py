"""The audit's page in a real browser, from the first answer to the verdict."""

import json
import re
import signal
import subprocess

import pytest
from support.audits import Served, command, made_audit
from support.axe import violations
from support.made_results import CLASSNAMES, HOSTILE
from support.tiny import ROOT
from support.visits import visiting

page_tests = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed"
)

# Messages of the browser itself: the server is gone, or another page has saved answers.
EXPECTED = re.compile(
    r"net::ERR_(CONNECTION_\w+|EMPTY_RESPONSE|CONTENT_LENGTH_MISMATCH)|412"
)


@pytest.fixture
def results(tmp_path):
    return made_audit(tmp_path / "made")


@pytest.fixture
def visit(browser):
    """Opens an address; afterwards the page must have complained of nothing."""
    with visiting(browser, EXPECTED) as open_page:
        yield open_page


def at(page, number, total):
    """Wait until so many of the questions have answers."""
    text = re.compile(rf"^{number} of {total}\b")
    page_tests.expect(page.locator("#count")).to_have_text(text)


def saved(results):
    """The answers of the file."""
    return json.loads((results.folder / "audit" / "test" / "answers.json").read_text())[
        "answers"
    ]


def options(page):
    return page.locator("#options bdi").all_inner_texts()


def test_the_whole_way_by_keyboard_through_a_kill(visit, results):
    with Served(results, "--budget", "30") as served:
        page = visit(served.address)
        at(page, 0, 30)
        assert page.locator("#picture").evaluate(
            "one => one.decode().then(() => one.naturalWidth)"
        )
        assert not page.locator("#figures").is_visible()  # so that it does not lead the eye
        for number in range(12):
            page.keyboard.press(str(1 + number % 3))
            at(page, number + 1, 30)
        assert len(saved(results)) == 12
        page.keyboard.press("Backspace")
        at(page, 11, 30)
        page.keyboard.press("0")
        at(page, 12, 30)
        assert saved(results)[-1]["answer"] == "none"
        before = options(page)
        served.process.kill()
        served.process.communicate(timeout=60)
        page.keyboard.press("1")
        page.wait_for_selector("#trouble:not([hidden])")
        assert "earlier answers are saved" in page.locator("#trouble").inner_text()
        page.context.close()
    said = saved(results)
    with Served(results, "--budget", "30") as served:
        page = visit(served.address)
        at(page, 12, 30)
        assert options(page) == before  # in the same random order
        for number in range(12, 30):
            page.keyboard.press("c" if number == 20 else "1")
            at(page, number + 1, 30)
        page.wait_for_selector("#figures:not([hidden])")
        verdict = page.locator("#verdict").inner_text()
        assert page.locator("#figures table").count() == 2
        assert "report.html" in page.locator("#steps").inner_text()
        told, status = served.end(signal.SIGINT)
        assert status == 0
        assert verdict in told
    assert saved(results)[: len(said)] == said
    again = subprocess.run(
        command(results, "--score"), capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert verdict in again.stdout


def test_two_pages_at_once_lose_no_answer(visit, results):
    with Served(results, "--budget", "12") as served:
        one, other = visit(served.address), visit(served.address)
        at(one, 0, 12)
        at(other, 0, 12)
        one.keyboard.press("1")
        at(one, 1, 12)
        other.keyboard.press("2")  # of the same image, which has its answer
        at(other, 1, 12)
        assert len(saved(results)) == 1
        other.keyboard.press("2")
        at(other, 2, 12)
        one.keyboard.press("3")
        at(one, 2, 12)
        one.keyboard.press("Backspace")
        at(one, 1, 12)
        assert len(saved(results)) == 1


def test_hostile_names_are_text_and_of_many_classes_any_can_be_found(visit, tmp_path):
    names = [*CLASSNAMES, "knits", "felts", "silks"]
    results = made_audit(tmp_path / "many", classnames=names)
    with Served(results, "--budget", "12") as served:
        page = visit(served.address)
        at(page, 0, 12)
        page.keyboard.press(
            "0"
        )  # beside the field for another class, no key says "of no class"
        page.keyboard.press("/")
        page.keyboard.type("no such class")
        page.keyboard.press("Enter")
        assert not page.locator("#search").evaluate("one => one.checkValidity()")
        page.locator("#search").fill(HOSTILE)
        page.keyboard.press("Enter")
        at(page, 1, 12)
        assert saved(results)[0]["class"] == HOSTILE
        page.keyboard.press("1")  # the keys choose again
        at(page, 2, 12)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_the_running_result_is_shown_when_asked_for(visit, axe, results, width, scheme):
    with Served(results, "--budget", "12") as served:
        page = visit(served.address, width=width, color_scheme=scheme)
        for number in range(10):
            at(page, number, 12)
            page.locator("#options button").first.click()
        at(page, 10, 12)
        assert violations(page, axe) == []  # of a question
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#reveal").click()
        page.wait_for_selector("#figures:not([hidden])")
        assert (
            page.locator("#figures tbody tr").count() == 5 + 4
        )  # runs, and others than the best
        page.keyboard.press("1")
        at(page, 11, 12)
        assert not page.locator("#figures").is_visible()
        page.locator("#finish").click()
        page.wait_for_selector("#steps p")
        assert violations(page, axe) == []  # of the result


def test_a_file_works_without_a_network_and_its_answers_are_taken(
    visit, axe, results, tmp_path
):
    file, exported = tmp_path / "audit.html", tmp_path / "answers.json"
    run = [*command(results, "--offline", str(file)), "--budget", "15"]
    subprocess.run(run, check=True, cwd=ROOT)
    page = visit(file.as_uri(), width=390, offline=True)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    for number in range(12):
        at(page, number, 15)
        page.keyboard.press("2")
    at(page, 12, 15)
    assert violations(page, axe) == []
    page.reload()
    at(page, 12, 15)  # the browser's memory keeps them
    page.keyboard.press("Backspace")
    at(page, 11, 15)
    page.keyboard.press("1")
    at(page, 12, 15)
    with page.expect_download() as download:
        page.locator("#export").click()
    download.value.save_as(exported)
    assert [
        url for url in requests if not url.startswith(("file:", "data:", "blob:"))
    ] == []
    for taken in (12, 0):  # the second time, nothing counts twice
        done = subprocess.run(
            command(results, "--answers", str(exported)),
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        assert f" {taken} of 12 " in done.stderr
    assert len(saved(results)) == 12

"""All pages in one chromium without a network: what keys do, and what axe-core finds."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import tarfile
from contextlib import contextmanager

import pytest
from support.audits import command, made_audit, running
from support.checkout import hear_interrupts
from support.made_results import CLASSNAMES, N_UNNAMED, Results, discover, write_unnamed
from support.pages import write, write_unknown
from support.tiny import ROOT
from support.worlds import Taken

from latteclip.audit.server import PageServer
from latteclip.audit.teach import TeachingSession
from latteclip.discover.classes import ClassesPage

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
expect = playwright.expect
PATIENCE = 60_000  # milliseconds: the machine may be busy
expect.set_options(timeout=PATIENCE)
VERSION = "4.10.3"
SHA256 = "880970c081707360e64f34cea25ff91892f5bc95675b0776925b9709dd8a68bb"  # of axe.min.js
# Messages of the browser itself: the server is gone, refuses, or another page was faster.
ERRORS = r"CONNECTION_\w+|EMPTY_RESPONSE|CONTENT_LENGTH_MISMATCH|ABORTED"
EXPECTED = re.compile(rf"net::ERR_({ERRORS})|status of 400|412")


@pytest.fixture(scope="module")
def axe(request, tmp_path_factory):
    """The script of axe-core, which npm fetches once into pytest's cache, if there is one."""
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("axe") if cache else tmp_path_factory.mktemp("axe")
    packed = folder / f"axe-core-{VERSION}.tgz"
    if not packed.is_file():
        fetch = ["npm", "pack", f"axe-core@{VERSION}", "--ignore-scripts", "--silent"]
        try:
            subprocess.run(fetch, cwd=folder, check=True, capture_output=True, timeout=180)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"axe-core cannot be fetched by npm ({error})")
    with tarfile.open(packed) as archive:
        content = archive.extractfile("package/axe.min.js").read()
    assert hashlib.sha256(content).hexdigest() == SHA256, f"not axe-core {VERSION}"
    return content.decode()


def violations(page, axe):
    """What is serious or critical on a page, with its place."""
    page.evaluate(axe)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    assert found["passes"]
    return [
        f"{one['id']}: {one['help']} at {node['target']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium, driven by Playwright."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, which root and most containers cannot have; the page is our own.
        running = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """Opens an address in a context of its own; at the end no page may have complained."""
    contexts, complaints = [], []

    def complain(message):
        if not EXPECTED.search(message.text):
            complaints.append(message.text)

    def open_page(address, width=1280, **options):
        viewport = {"width": width, "height": 900}
        context = browser.new_context(viewport=viewport, accept_downloads=True, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@contextmanager
def auditing(results):
    """A process of `latteclip audit`, what it printed first, and the address of its page."""
    with subprocess.Popen(
        command(results, "--no-browser", "--budget", "30"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        preexec_fn=hear_interrupts,
    ) as process:
        printed = ""
        while not (address := re.search(r"http://127\.0\.0\.1:\d+/[\w-]+/", printed)):
            line = process.stdout.readline()
            assert line, printed
            printed += line
        try:
            yield process, printed, address[0]
        finally:
            process.kill()


# --- pages of results -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The pages of a dataset with labels and of one without."""
    names = [*CLASSNAMES, "x" * 90]
    labelled = Results(tmp_path_factory.mktemp("made"), classnames=names)
    choice = {"dataset": "made", "method": "flyp", "seed": 0, "reason": "It agrees."}
    selection = labelled.folder / "chosen.json"
    selection.write_text(json.dumps(choice))
    options = {"captions": True, "selection": str(selection)}
    write(labelled, **options)
    without = Results(tmp_path_factory.mktemp("no"), classnames=names, labelled=False)
    write(without, unknown=write_unknown(without), **options)
    return {
        "labelled": labelled.folder / "report.html",
        "unlabelled": without.folder / "report.html",
    }


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
@pytest.mark.parametrize("name", ["labelled", "unlabelled"])
def test_pages_exclude_nobody_and_fit_the_window(visit, axe, files, name, width, scheme):
    page = visit("about:blank", width=width, color_scheme=scheme, offline=True)
    seen = []
    page.on("request", lambda request: seen.append(request.url))
    page.goto(files[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)))
    assert (brightness > 600) == (scheme == "light")
    assert violations(page, axe) == []
    pictures = "Promise.all([...document.images].map(i => i.decode().then(() => i.width)))"
    assert all(page.evaluate(pictures))
    assert all(url.startswith(("file:", "data:")) for url in seen)


# --- the page of an audit -------------------------------------------------------------------------


def at(page, number, total):
    """Wait until so many of the questions have answers."""
    text = re.compile(rf"^{number} of {total}\b")
    expect(page.locator("#count")).to_have_text(text)


def saved(results):
    """The answers of the file."""
    path = results.folder / "audit" / "test" / "answers.json"
    return json.loads(path.read_text())["answers"]


def test_an_audit_by_keyboard_through_a_kill(visit, axe, tmp_path):
    results = made_audit(tmp_path / "made")
    results.write_index({"written": {CLASSNAMES[1]: "My_F-16A"}})
    with auditing(results) as (process, printed, address):
        assert printed.startswith("Preparing")  # before it reads anything
        page = visit(address)
        at(page, 0, 30)
        assert not page.locator("#result").is_visible()  # so that it does not lead the eye
        for number in range(12):
            page.keyboard.press(str(1 + number % 3))
            at(page, number + 1, 30)
        page.keyboard.press("Backspace")
        at(page, 11, 30)
        page.keyboard.press("0")
        at(page, 12, 30)
        assert saved(results)[-1]["answer"] == "none"
        options = page.locator("#options bdi").all_inner_texts()
        assert options[1] == "My_F-16A" and saved(results)[1]["class"] == CLASSNAMES[1]
        process.kill()
        process.communicate()
        page.keyboard.press("1")
        page.wait_for_selector("#trouble:not([hidden])")
        page.context.close()
    before = saved(results)
    with auditing(results) as (process, _, address):
        page = visit(address, width=390)
        at(page, 12, 30)
        assert page.locator("#options bdi").all_inner_texts() == options  # the same order
        assert violations(page, axe) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for number in range(12, 30):
            page.keyboard.press("c" if number == 20 else "1")
            at(page, number + 1, 30)
        page.wait_for_selector("#result:not([hidden])")
        assert violations(page, axe) == []
        verdict = page.locator("#verdict").inner_text()
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate()
        assert process.returncode == 0 and verdict in printed
    assert saved(results)[: len(before)] == before


def test_a_file_works_without_a_network_and_its_answers_are_taken(visit, axe, tmp_path):
    results = made_audit(tmp_path / "made")
    file, exported = tmp_path / "audit.html", tmp_path / "answers.json"
    other = tmp_path / "other.html"
    for path, budget in ((file, "15"), (other, "10")):
        words = [*command(results, "--offline", str(path)), "--budget", budget]
        subprocess.run(words, check=True, cwd=ROOT)
    page = visit(file.as_uri(), width=390, offline=True)
    for number in range(12):
        at(page, number, 15)
        page.keyboard.press("2")
    at(page, 12, 15)
    assert violations(page, axe) == []
    page = page.context.new_page()  # a busy Chromium may forget them where none is open
    for _ in range(30):  # and passes them on later
        page.goto(file.as_uri())
        if page.locator("#count").inner_text().startswith("12 "):
            break
        page.wait_for_timeout(1000)
    at(page, 12, 15)  # the browser's memory keeps them
    page.goto(other.as_uri())
    at(page, 0, 10)  # a page with other questions has other answers
    page.goto(file.as_uri())
    at(page, 12, 15)
    with page.expect_download() as download:
        page.locator("#export").click()
    download.value.save_as(exported)
    subprocess.run(command(results, "--answers", str(exported)), check=True, cwd=ROOT)
    assert len(saved(results)) == 12


def test_teaching_by_keys_alone(visit, axe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = Taken(tmp_path)
    taken.write_scores([[]] * len(taken.ids), [[]] * len(taken.ids))
    session = TeachingSession(taken.folder, 24)
    with running(PageServer(session)) as server:
        page, other = visit(server.address, width=390), visit(server.address)
        at(other, 0, 24)
        keys = {5: "0", 6: "c"}
        for number in range(24):
            at(page, number, 24)
            if number in (2, 14):
                assert violations(page, axe) == []
            if number == 23:
                page.get_by_role("button", name="Show the result so far").click()
                expect(page.locator("#verdict")).to_contain_text(
                    "labels are right", timeout=60_000
                )
            page.keyboard.press(keys.get(number, str(1 + number % 3)))
        at(page, 24, 24)
        other.keyboard.press("0")
        expect(other.locator("#trouble")).to_contain_text("answer stays")
        at(other, 24, 24)
        expect(page.locator("#result")).to_be_visible()
        expect(page.locator("#steps")).to_contain_text("workflow --cores all")
        assert "labels are right" in page.locator("#verdict").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [one.kind for one in session.answers().values()].count("none") == 1


# --- the page of classes --------------------------------------------------------------------------


def test_classes_are_renamed_merged_and_dropped_by_the_keyboard(visit, axe, tmp_path):
    results = tmp_path / "results" / "mine"
    results.mkdir(parents=True)
    called = ["cup", "dog", "ca\u202er </script>"]
    write_unnamed(results, [called[number % 3] for number in range(N_UNNAMED)])
    discover(results)
    with running(PageServer(ClassesPage(results))) as server:
        page, other = visit(server.address), visit(server.address)
        cards = page.locator("article")
        expect(page.locator("#count")).to_contain_text("nobody has checked")
        assert violations(page, axe) == []
        page.locator("article", has=page.get_by_text("cup", exact=True)).focus()
        page.keyboard.press("r")
        page.keyboard.type("dog")  # in use
        page.keyboard.press("Enter")
        expect(page.locator("#trouble")).to_contain_text("in use")
        page.locator("input").fill("my <i>cup")
        page.keyboard.press("Enter")
        expect(page.locator("h2 bdi", has_text="my <i>cup")).to_have_count(1)
        expect(page.locator("#result")).to_be_visible()
        cards.first.focus()
        page.keyboard.press("m")
        cards.nth(1).focus()
        page.keyboard.press("m")
        expect(cards).to_have_count(2)
        page.keyboard.press("Backspace")
        expect(cards).to_have_count(3)
        other.get_by_role("button", name="Leave out").first.click()
        expect(other.locator("article")).to_have_count(2)
    actions = json.loads((results / "classes.json").read_text())["actions"]
    assert [one["do"] for one in actions] == ["rename", "leave_out"]

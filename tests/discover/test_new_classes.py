"""Classes that images marked unknown may show."""

import http.client

import numpy as np
import pytest
from support.tiny import write_captions, write_index, write_pictures
from support.visits import running

from latteclip.core import tables
from latteclip.core.class_history import edited_classes
from latteclip.core.errors import UserError
from latteclip.core.metadata import UnknownMetadata
from latteclip.discover.classes import classes
from latteclip.discover.new_classes import propose_new_classes
from latteclip.discover.new_classes_page import Change, NewClassesPage, NewClassesServer

page_tests = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed"
)
CLASSES = ["cup", "dog"]
KNOWN, NEW, ODD = 40, 14, 5  # images of each class, of a new class, and of nothing else


@pytest.fixture
def results(tmp_path):
    """Images of two classes, with fourteen of a third and some odd ones marked unknown."""
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "classes.txt").write_text("cup\ndog")
    link = tmp_path / "resources" / "mine"
    link.mkdir(parents=True)
    (link / "folder").symlink_to(photos)
    rng = np.random.default_rng(0)
    kinds = [*[0] * KNOWN, *[1] * KNOWN, *[2] * NEW, *range(3, 3 + ODD)]
    n = len(kinds)
    features = rng.normal(size=(3 + ODD, 32))[kinds] + 0.5 * rng.normal(size=(n, 32))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = [f"{number:03d}.png" for number in range(n)]
    files = write_pictures(tmp_path / "pictures", n)
    write_index(folder / "images.parquet", files, ["train"] * n, [None] * n, CLASSES)
    columns = {
        "image_id": ids,
        "split": ["train"] * n,
        "pseudo_label": [0] * n,
        "confidence": [None] * n,
        "topk_labels": [[0]] * n,
        "topk_scores": [[0.5]] * n,
        "image_features": tables.list_column(features.astype(np.float32)),
    }
    tables.write(folder / "pseudo_labels.parquet", columns, tables.PSEUDO_LABELS)
    unknown = {
        "image_id": ids,
        "score": [0.0] * n,
        "captioner_score": [None] * n,
        "is_unknown": [kind > 1 for kind in kinds],
    }
    metadata = UnknownMetadata(CLASSES, 0.0, 0.1)
    tables.write(folder / "unknown.parquet", unknown, tables.UNKNOWN, metadata)
    return folder


def name_images(folder, new="a forklift in a hall", **columns):
    """Write captions of the images."""
    texts = ["a cup"] * KNOWN + ["a dog"] * KNOWN + [new] * NEW + ["a thing"] * ODD
    ids = [f"{number:03d}.png" for number in range(len(texts))]
    (folder / "captions").mkdir()
    write_captions(folder / "captions" / "images.parquet", ids, texts, **columns)


def test_unknown_images_that_look_alike_are_proposed_by_their_name(results):
    name_images(results)
    first = propose_new_classes(results)[0]
    assert first.name == "forklift"
    wanted = {f"{number:03d}.png" for number in range(2 * KNOWN, 2 * KNOWN + NEW)}
    assert set(first.image_ids) == wanted
    text = classes(str(results), new=True)
    assert "14 images look alike and are called 'forklift'" in text
    assert "--add forklift" in text


def test_without_captions_looks_alone_group_them(results):
    found = propose_new_classes(results)
    assert found[0].name is None
    wanted = {f"{number:03d}.png" for number in range(2 * KNOWN, 2 * KNOWN + NEW)}
    assert len(wanted & set(found[0].image_ids)) >= NEW - 2


def test_captions_that_were_asked_about_pseudo_labels_name_nothing(results):
    n = 2 * KNOWN + NEW + ODD
    prompts = [f"Describe the {CLASSES[number % 2]}." for number in range(n)]
    name_images(results, new="a cup", prompt=prompts)
    assert propose_new_classes(results)[0].name is None


def test_images_called_like_a_class_are_no_new_class(results):
    name_images(results, new="a Cup")
    assert "cup" not in {one.name for one in propose_new_classes(results)}


def test_a_class_that_is_taken_over_is_appended(results):
    listed = results.parents[1] / "photos" / "classes.txt"
    assert "answers about other classes stay" in classes(str(results), add="forklift")
    assert listed.read_text() == "cup\ndog\nforklift\n"
    for name in ("FORKLIFT", " \n"):
        with pytest.raises(UserError, match=r"classes\.txt"):
            classes(str(results), add=name)
    assert listed.read_text() == "cup\ndog\nforklift\n"


def test_a_name_in_use_leaves_the_group_the_class_that_it_is(results):
    name_images(results)
    listed = results.parents[1] / "photos" / "classes.txt"
    page = NewClassesPage(results)
    page.change(Change(group=0, name="forklift"))
    with pytest.raises(UserError, match=r"classes\.txt"):
        page.change(Change(group=0, name="Dog"))
    assert listed.read_text() == "cup\ndog\nforklift\n"
    page.change(Change(group=0, name="Forklift"))
    assert listed.read_text() == "cup\ndog\nForklift\n"
    assert page.state()["taken"][0] == "Forklift"


def test_a_list_that_is_no_text_is_one_sentence(results):
    listed = results.parents[1] / "photos" / "classes.txt"
    listed.write_bytes(b"cup\nd\xf6g\n")
    with pytest.raises(UserError, match=r"classes\.txt"):
        classes(str(results), add="forklift")
    assert listed.read_bytes() == b"cup\nd\xf6g\n"


def test_a_class_beside_proposed_ones_counts_as_an_edit_by_hand(results):
    (results / "discovery.json").write_text(
        '{"classes": [{"name": "cup"}, {"name": "dog"}]}'
    )
    (results / "classes.txt").write_text("cup\ndog\n")
    classes(str(results), add="forklift")
    assert edited_classes(results) == ["cup", "dog", "forklift"]


@pytest.fixture
def served(results):
    """The page of classes of one's own, with its pictures."""
    name_images(results)
    with running(NewClassesServer(NewClassesPage(results))) as server:
        yield server


def test_a_click_makes_unknown_images_a_class_of_any_name(served, results, visit):
    listed = results.parents[1] / "photos" / "classes.txt"
    page = visit(served.address)
    first = page.locator("article").first
    page_tests.expect(first.locator("img")).to_have_count(12)
    assert first.locator("input").input_value() == "forklift"
    first.locator("input").fill("Cup")
    first.get_by_role("button", name="Make it a class").click()
    page_tests.expect(page.locator("#trouble")).to_contain_text("in use")
    assert listed.read_text() == "cup\ndog"
    first.locator("input").fill("<b>fork  truck")
    first.get_by_role("button", name="Make it a class").click()
    page_tests.expect(page.locator("#classes")).to_contain_text("<b>fork truck")
    assert listed.read_text() == "cup\ndog\n<b>fork truck\n"
    again = visit(served.address).locator("article").first
    again.get_by_role("button", name="Undo").click()
    page_tests.expect(again.locator("input")).to_have_count(1)
    assert listed.read_text() == "cup\ndog\n"


def test_requests_of_strangers_and_other_changes_add_no_class(served, results):
    def put(content, **headers):
        host = f"127.0.0.1:{served.server_port}"
        usual = {"Origin": f"http://{host}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(host, timeout=20)
        path = f"/{served.token}/new/classes"
        connection.request("PUT", path, content, usual | headers)
        return connection.getresponse().status

    good = '{"group": 0, "name": "forklift"}'
    assert put(good, Origin="http://evil.example") == 403
    for wrong in ("", "[]", '{"group": 99, "name": "x"}', '{"group": 0, "name": "dog"}'):
        assert put(wrong) == 400
    assert put('{"group": 0, "name": "x", "path": "/etc/passwd"}') == 400
    assert (results.parents[1] / "photos" / "classes.txt").read_text() == "cup\ndog"
    assert put(good) == 200


def test_classes_that_are_folders_are_named_where_one_is_to_be_added(results):
    (results.parents[1] / "photos" / "classes.txt").unlink()
    with pytest.raises(UserError, match="add a folder"):
        classes(str(results), add="forklift")

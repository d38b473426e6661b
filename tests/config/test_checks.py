"""What a run lacks is one sentence that names the key, before any job, also of a dry run."""

import subprocess
import sys

import open_clip
import pytest
from support.tiny import DEMO_LLAVA

from latteclip.config import checks
from latteclip.core.errors import UserError

OWN_CAPTIONS = {"captioner": {"engine": "file", "images_file": "mine.csv"}}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working folder with unlabelled photos, and captions of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "mine.csv").write_text("image_id,caption\n")
    return tmp_path / "photos"


@pytest.fixture
def checked(configured, photos):
    """Checks the run of a folder with what a user gives."""
    return lambda **given: checks.refuse_unready(
        configured(**{"dataset": "mine", "image_dir": "photos", **given})
    )


def test_what_is_complete_is_not_refused(checked, configured):
    checked()
    checked(**OWN_CAPTIONS)
    for dataset in ("demo", "all"):
        checks.refuse_unready(configured(dataset=dataset))


def test_a_folder_without_classes_is_refused(checked, photos):
    (photos / "classes.txt").unlink()
    (photos / ".hidden").mkdir()
    with pytest.raises(UserError, match=r"Dataset mine: photos .*photos/classes\.txt"):
        checked()
    (photos / "train").mkdir()
    with pytest.raises(UserError, match=r"photos/classes\.txt"):
        checked()
    (photos / "train" / "cat").mkdir()
    checked()


def test_a_folder_that_is_nowhere_is_named_by_the_key_that_was_typed(checked):
    with pytest.raises(UserError, match="image_dir nowhere is not a folder"):
        checked(image_dir="nowhere")


def test_folders_are_classes_only_where_a_person_says_so_or_the_layout_does(
    checked, photos, configured
):
    (photos / "classes.txt").unlink()
    for name in ("dcim", "obst & gemuese", "fridge"):
        (photos / name).mkdir()
    named = (
        r"3 folders \(dcim, fridge, obst & gemuese\).*'folders'.*classes\.txt.*'discover'"
    )
    with pytest.raises(UserError, match=named):
        checked()
    checked(split={"classes": "folders"})
    checked(split={"kind": "folders"})
    own = {"source": {"folder": "photos"}, "split": {"kind": "folders"}}
    checks.refuse_unready(
        configured(dataset="own", datasets={"own": {**own, "template": "a {}."}})
    )
    for name in ("train", "test"):
        (photos / name / "apple").mkdir(parents=True)
    checked()
    with pytest.raises(UserError, match=r"split\.classes folders .*csv"):
        checked(split={"kind": "csv", "classes": "folders"})


@pytest.mark.parametrize("content", ["", "\ufeff \r\n"], ids=["empty", "blank"])
def test_a_list_without_classes_does_not_turn_folders_into_classes(
    checked, photos, content
):
    (photos / "dcim").mkdir()
    (photos / "classes.txt").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"photos/classes\.txt names no class"):
        checked()


@pytest.mark.parametrize(
    ("content", "named"),
    [("cat\n", "at least two"), ("cat\nCat\ndog\n", "'Cat'")],
    ids=["one class", "twice"],
)
def test_classes_that_no_run_can_use_are_known_at_its_start(
    checked, photos, content, named
):
    (photos / "classes.txt").write_text(content)
    with pytest.raises(UserError, match=rf"photos/classes\.txt: .*{named}"):
        checked()


def test_a_list_of_another_case_is_not_overlooked(checked, photos):
    (photos / "dcim").mkdir()
    (photos / "classes.txt").rename(photos / "Classes.TXT")
    with pytest.raises(UserError, match=r"photos/Classes\.TXT is not read"):
        checked()


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({"model": "ViT-L14"}, r"clip\.model ViT-L14 .*did you mean ViT-L-14\?"),
        ({"pretrained": "laion2b_s34b_b79"}, r"clip\.pretrained .*laion2b_s34b_b79k\?"),
    ],
    ids=str,
)
def test_a_clip_that_open_clip_does_not_know_is_refused(checked, clip, message):
    with pytest.raises(UserError, match=message):
        checked(clip=clip)


@pytest.mark.parametrize("model", ["llava", "./models/llava"])
def test_a_captioner_that_is_nowhere_is_refused_where_it_is_asked(checked, model):
    with pytest.raises(UserError, match=rf"captioner\.model {model} "):
        checked(captioner={"model": model})
    checked(captioner={"model": model}, method="zero_shot")


def test_a_server_needs_an_address_until_it_has_answered(checked, monkeypatch, tmp_path):
    server = {"captioner": {"engine": "openai", "model": "llava"}}
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        checked(**server)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    checked(**server)
    monkeypatch.delenv("OPENAI_BASE_URL")
    (tmp_path / "results" / "mine" / "captions").mkdir(parents=True)
    (tmp_path / "results" / "mine" / "captions" / "images.parquet").touch()
    checked(**server)


def test_captions_that_the_user_lacks_are_named_with_the_methods_that_do_without(checked):
    methods = {"method": "zero_shot,image_prototypes,latteclip,recommended"}
    without = "method=zero_shot,image_prototypes,recommended"
    with pytest.raises(
        UserError, match=rf"captioner\.groups_file.* latteclip\..*{without}"
    ):
        checked(**OWN_CAPTIONS, **methods)
    files = {"images_file": "mine.csv", "groups_file": "nope.csv"}
    with pytest.raises(UserError, match=r"captioner\.groups_file .*nope\.csv"):
        checked(captioner={"engine": "file", **files}, **methods)
    with pytest.raises(UserError, match=r"scores\.file"):
        checked(**OWN_CAPTIONS, scores={"kind": "multiple_choice"})


def test_a_server_has_no_likelihoods(checked, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    server = {"captioner": {"engine": "openai", "model": "llava"}}
    checked(**server, scores={"kind": "multiple_choice"})
    with pytest.raises(UserError, match=r"scores\.kind"):
        checked(**server, scores={"kind": "likelihood"})


DECIDES = {"captioner": {"engine": "decisions", "model": "decider"}}


def test_a_decision_model_scores_classes_and_writes_no_captions(checked, monkeypatch):
    scores = {"scores": {"kind": "decisions"}}
    with pytest.raises(UserError, match="DECISIONS_BASE_URL=https"):
        checked(**DECIDES, **scores)
    monkeypatch.setenv("DECISIONS_BASE_URL", "http://127.0.0.1:8000")
    checked(**DECIDES, **scores)
    with pytest.raises(UserError, match=r"captioner\.engine decisions writes no captions"):
        checked(**DECIDES)
    with pytest.raises(UserError, match=r"which latteclip need.*method=zero_shot"):
        checked(**DECIDES, **scores, method="zero_shot,latteclip")
    with pytest.raises(UserError, match=r"scores\.kind decisions alone"):
        checked(**DECIDES, scores={"kind": "multiple_choice"})
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    with pytest.raises(UserError, match=r"needs captioner\.engine decisions"):
        checked(captioner={"engine": "openai", "model": "llava"}, **scores)


def test_votes_by_class_scores_need_them(checked):
    with pytest.raises(UserError, match=r"votes lmm .*scores\.kind"):
        checked(votes="lmm")
    with pytest.raises(UserError, match=r"recommended.* votes are caption"):
        method = {"methods": {"recommended_single": {"pseudo_labels": "lmm"}}}
        checked(**method, method="recommended")


def test_captions_of_a_large_model_need_a_gpu(configured, photos, monkeypatch):
    def check(pending, **captioner):
        found = configured(dataset="mine", image_dir="photos", captioner=captioner)
        checks.refuse_slow_captions(found, pending)

    table = ["results/mine/captions/images.parquet"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for pending in (table, ["results/mine/captions/shards/images-1-of-2.parquet"]):
        with pytest.raises(UserError, match=r"Dataset mine: .* GPU"):
            check(pending)
    check(["results/mine/images.parquet", "results/mine/captions/summary.json"])
    check(table, engine="openai")
    check(table, model=str(DEMO_LLAVA))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check(table)


def test_clip_names_are_those_that_open_clip_lists_without_importing_it():
    models, tags = checks.open_clip_names()
    assert models == set(open_clip.list_models())
    assert tags >= {tag for _, tag in open_clip.list_pretrained()}
    code = (
        "import sys; from latteclip.config import checks; "
        "assert checks.open_clip_names(); assert 'open_clip' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Mistakes and what a run lacks are one sentence that names the key, before any job.

Also of a dry run. Each is found by the checks that a run begins with.
"""

from contextlib import nullcontext

import pytest
from support.tiny import DEMO_LLAVA

from latteclip.config import checks
from latteclip.core.errors import UserError
from latteclip.core.run_options import note_options

FOLDER = {"dataset": "mine", "image_dir": "photos"}
OWN = {"engine": "file", "images_file": "mine.csv"}
SERVER = {"engine": "openai", "model": "llava"}
DECIDES = {"engine": "decisions", "model": "decider"}
DECIDED = {"kind": "decisions"}
LETTERS = {"kind": "multiple_choice"}
WORDS = {"name": "words", "kind": "captions"}
OTHER_WORDS = {**WORDS, "model": str(DEMO_LLAVA), "prompt": "?"}
CLIP = {"name": "clip", "kind": "zero_shot", "model": "open_clip:ViT-B-32/openai"}
MINE = {"name": "mine", "kind": "file", "file": "mine.csv"}
SCORES = {"name": "scores", "kind": "likelihood"}
OFF = {"zero_shot_loss": False, "finetuned_loss": False}


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """A working folder with unlabelled photos, and captions of them; no server is known."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "DECISIONS_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "mine.csv").write_text("image_id,caption\n")
    return tmp_path / "photos"


@pytest.fixture
def check(configured):
    """Checks a run with what a user gives."""
    return lambda **given: checks.refuse_unready(configured(**given))


@pytest.fixture
def refused(check):
    def refused(message, **given):
        with pytest.raises(UserError, match=message) as caught:
            check(**given)
        assert "\n" not in str(caught.value)

    return refused


def test_a_limited_run_and_a_dataset_of_its_name_share_no_folder(refused, check, tmp_path):
    other = {"image_dir": "photos", "dataset": "mine_64"}
    for first, second in (
        ({**FOLDER, "limit": 64}, other),
        (other, {**FOLDER, "limit": 64}),
    ):
        note_options({"mine_64": first["dataset"]}, first)
        check(**first)
        check(**second)  # there are no results yet
        (tmp_path / "results" / "mine_64").mkdir(parents=True)
        check(**first)
        refused(f"results/mine_64 .*dataset {first['dataset']}.*", **second)
        (tmp_path / "results" / "mine_64").rmdir()


def source(**values):
    return {"dataset": "new", "datasets": {"new": {"source": values}}}


def method(**values):
    return {"method": "own", "methods": {"own": values}}


def labellers(*several):
    return {"labellers": list(several)}


def folder(**given):
    return {**FOLDER, **given}


MISTAKES = [
    ({"captionr": {}}, "captionr .*captioner"),
    ({"methods": {"latteclip": {"switches": {"mixer_weight": 0}}}}, "mixer_weights"),
    ({"dataset": "demoo"}, "demoo.*demo"),
    ({"method": "flyp,lateclip"}, "lateclip.*latteclip"),
    ({"finetune": {"lr": -1}}, r"finetune\.lr "),
    ({"limit": "64 images"}, r"limit must be a whole number, not"),
    ({"limit": 24, "datasets": {"demo_24": {}}}, "limit=24 .*results/demo_24"),
    ({"captioner": "openai"}, r"captioner must be keys with values, not"),
    ({"template": "a cat"}, r"template must contain {} or be a list, not"),
    ({"seeds": "1;2"}, r"seeds .*must be .*0,1,2"),
    ({"seeds": 0}, r"seeds .*must be .*0,1,2\), not 0"),
    ({"dataset": "a\nb", "image_dir": "photos"}, r"key dataset .*letters"),
    ({"scores": {"answer": "x"}}, r"scores\.answer .*contain \{\}"),
    ({"dataset": "new", "datasets": {"new": {"template": "{}"}}}, "new .*image_dir"),
    ({"methods": {"new": {"switches": {}}}}, r"methods\.new\.objective"),
    ({"methods": {"new": {"like": "lateclip"}}}, "lateclip.*latteclip"),
    ({"table": {"baseline": "latte"}}, r"table\.baseline .*latteclip"),
    ({"methods": {"a": {"like": "b"}, "b": {"like": "a"}}}, "a, b, a"),
    # The last stage would find these, after days of captioning.
    (method(like="flyp", pseudo_labels="lmm"), "own.*lmm are class scores"),
    (method(like="latteclip", switches=OFF), r"methods\.own\.switches .*a loss on"),
    (method(objective="average_weights", of="zero_shot"), r"methods\.own\.of is zero_shot"),
    ({"method": "image_prototypes_encoders"}, "needs image_encoders"),
    ({"dataset": "a,b", "image_dir": "photos"}, r"image_dir.*a, b"),
    (source(folder="photographs"), r"source\.folder photographs"),
    ({"dataset": "mine", "image_dir": "/nowhere"}, "image_dir /nowhere"),
    # Names that were removed.
    (source(downloads={"x.zip": {"into": "out"}}), r"x\.zip\.into was removed"),
    # A dataset in a folder.
    (folder(split={"kind": "csv"}, class_names="folders"), "class_names folders .*csv"),
    # Captioners.
    (folder(captioner=OWN, method="latteclip"), r"captioner\.groups_file "),
    (folder(captioner=OWN, scores=LETTERS), r"labeller of kind file"),
    (folder(captioner=DECIDES), r"captioner\.engine decisions writes no captions"),
    (folder(captioner=DECIDES, scores=LETTERS), r"scores\.kind to decisions"),
    (folder(captioner=SERVER, scores={"kind": "likelihood"}), r"the engine to vllm"),
    # Labellers.
    (labellers({"name": "a"}), r"labellers\.0 must have the key kind"),
    (labellers({**WORDS, "name": "fused"}), r"labellers\.0 must have another name"),
    (labellers(WORDS, {**SCORES, "name": "words"}), "two labellers called words"),
    (labellers({**SCORES, "file": "mine.csv"}), "must not have file"),
    *(
        (labellers({"name": "a", "kind": "zero_shot", "model": model}), "open_clip:<model>")
        for model in ("ViT-B-32", "open_clip:ViT-B-32")
    ),
    (folder(clip={"model": "local-dir:nowhere"}), "nowhere"),
    (folder(image_encoders="local-dir:nowhere"), "nowhere"),
    (labellers({**CLIP, "model": "local-dir:nowhere"}), "nowhere"),
    *(
        (labellers(one, {**one, "name": "same"}), f"{one['name']} and same have the same")
        for one in (WORDS, OTHER_WORDS, CLIP, MINE)
    ),
    (
        labellers({"name": "a", "kind": "file", "file": "no.csv"}),
        r"labeller a, file no\.csv",
    ),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=str)
def test_a_mistake_is_one_sentence_that_names_the_key(refused, given, message):
    refused(message, **given)


def test_what_is_complete_is_not_refused(check, photos):
    check(**FOLDER)
    photos.with_name("2024").symlink_to(photos)
    check(dataset=2024, image_dir=2024)  # as Snakemake reads the command line
    check(**folder(captioner=OWN))
    check(**folder(captioner={"model": "nowhere"}, method="zero_shot"))
    check(**folder(captioner=SERVER, scores=LETTERS))  # status needs no address
    check(dataset="all")
    check(finetune={"lr": "auto"})  # of those methods that train
    several = [
        {"name": "a", "kind": "file", "file": "mine.csv"},
        {"name": "b", "kind": "zero_shot", "model": "open_clip:ViT-B-32/openai"},
        {"name": "c", "kind": "captions", "model": str(DEMO_LLAVA), "prompt": "?"},
        {"name": "d", "kind": "captions", "file": "mine.csv"},
    ]
    check(labellers=[WORDS, *several])


def test_classes_are_named_in_a_file_or_by_folders_of_which_a_person_says_so(
    check, refused, photos
):
    (photos / "classes.txt").unlink()
    (photos / ".hidden").mkdir()
    refused(r"Dataset mine: photos .*photos/classes\.txt", **FOLDER)
    for name in ("dcim", "obst & gemuese", "fridge"):
        (photos / name).mkdir()
    named = r"dcim, fridge, obst & gemuese.*=folders.*=discover"
    refused(named, **FOLDER)
    check(**folder(class_names="folders"))
    for name in ("train", "test"):
        (photos / name / "apple").mkdir(parents=True)
    check(**FOLDER)  # the layout says so


TABLE = "results/mine/captions/images.parquet"
SCORED = "results/mine/class_scores.parquet"
OTHER = "results/mine/labellers/other.parquet"
OF_OTHER = labellers(WORDS, {**WORDS, "name": "other", "model": "an/lmm"})
LLAVA = {"captioner": {"model": str(DEMO_LLAVA)}}


@pytest.mark.parametrize(
    ("pending", "given", "message"),
    [
        (TABLE, {}, r"Dataset mine: .* GPU.*labellers=\[\]"),
        (OTHER, OF_OTHER, "an/lmm"),
        ("results/mine/images.parquet", {}, None),
        (TABLE, LLAVA, None),  # a folder of one's own
        (TABLE, {"captioner": SERVER}, "OPENAI_BASE_URL=http"),
        (SCORED, {"captioner": DECIDES, "scores": DECIDED}, "DECISIONS_BASE_URL=http"),
    ],
    ids=str,
)
def test_questions_that_nobody_would_answer_end_a_run(
    configured, monkeypatch, pending, given, message
):
    def start(**values):
        run = configured(**folder(**given))
        checks.refuse_unanswered(run, [pending], **{"has_gpus": False, **values})

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    refused = pytest.raises(UserError, match=message) if message else nullcontext()
    with refused:
        start()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    monkeypatch.setenv("DECISIONS_BASE_URL", "http://localhost:8000")
    start(has_gpus=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    start()

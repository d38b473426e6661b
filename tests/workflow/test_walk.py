"""Random edits of a dataset: what the runs between them leave is what a new folder gets."""

import itertools
import json
import os
import random
import shutil
import time

import pytest
import yaml
from support import warm
from support.captioning import mean_colour
from support.image_folders import picture
from support.servers import ChatServer, picture_of, serving
from support.tiny import DEMO_CLIP, ROOT

from latteclip.core import tables
from latteclip.core.answers import Answer, AnswerFile

STEPS = 10
RUN_AFTER = 5
RESULTS = "results/mine"
ASKED = "resources/mine/captions"
CLASSES = ("red", "green", "blue", "cyan", "pink", "grey", "brown", "white")
N, FEWEST_CLASSES, MOST_CLASSES = 24, 3, 7
FINETUNE = {"epochs": 1, "batch_size": 8, "warmup_steps": 1}
KEYS = {
    "captioner": (
        {"engine": "file", "images_file": "captions.jsonl", "groups_file": "groups.jsonl"},
        {"engine": "openai", "model": ChatServer.model},
    ),
    "finetune": (FINETUNE, {**FINETUNE, "lr": 1e-4}),
    "template": ("a photo of a {}.", "a {} texture"),
    "split": ({"kind": "folders"}, {"kind": "folders", "max_corrupt": 0.5}),
    "labellers": (None, [{"name": "words", "kind": "captions", "max_images": 9}]),
}
# Times, and the page that shows them.
NOT_COMPARED = {"logs", "benchmarks", "encoding.json", "report.html"}
# The last one trains two models.
GOALS = (["labels"], ["labels"], ["all"])
RUN = ("-j2", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "mine.yaml")


class Captioner(ChatServer):
    """A service that names a class by the colour of a picture, and that may refuse all."""

    is_out = False

    def reply(self, path, body, headers):
        return (401, {}, {}) if self.is_out else super().reply(path, body, headers)

    def answer(self, body):
        reply = super().answer(body)
        *pictures, _ = body["messages"][0]["content"]
        seen = "".join(mean_colour(picture_of(part)) for part in pictures)
        name = CLASSES[sum(map(ord, seen)) % len(CLASSES)]
        reply["choices"][0]["message"]["content"] = f"a {name} cloth"
        return reply


class Walk:
    """A folder of photographs and what the user keeps beside it, and edits of them."""

    def __init__(self, root, seed, captioner):
        self.root, self.random, self.captioner = root, random.Random(seed), captioner
        self.goal = self.random.choice(GOALS)
        self.photos, self.answers = root / "photos", root / RESULTS / "answers.json"
        self.photos.mkdir(parents=True)
        self.classes, self.captions = list(CLASSES[:4]), {}
        self.keys = {key: values[0] for key, values in KEYS.items()}
        self.drawn, self.edits = 0, []
        for _ in range(N):
            self.add_photo()
        self.write()

    def draw(self, name):
        """Write a picture that no other one is like, and its caption."""
        self.drawn += 1
        picture(self.drawn, (64, 64)).save(self.photos / name)
        self.captions[name] = f"a {self.random.choice(self.classes)} cloth"

    def photo(self):
        return self.random.choice(sorted(self.captions))

    def new_name(self):
        return f"{self.random.randrange(10**6):06}.png"

    def add_photo(self):
        self.draw(self.new_name())

    def delete_photo(self):
        name = self.photo()
        (self.photos / name).unlink()
        del self.captions[name]

    def rename_photo(self):
        old, new = self.photo(), self.new_name()
        (self.photos / old).rename(self.photos / new)
        self.captions[new] = self.captions.pop(old)

    def replace_photo(self):
        self.draw(self.photo())

    def spoil_photo(self):
        (self.photos / self.photo()).write_bytes(b"no picture")

    def new_class(self):
        return self.random.choice([one for one in CLASSES if one not in self.classes])

    def rename_class(self):
        self.classes[self.random.randrange(len(self.classes))] = self.new_class()

    def add_class(self):
        if len(self.classes) < MOST_CLASSES:
            self.classes.insert(self.random.randrange(len(self.classes)), self.new_class())

    def remove_class(self):
        if len(self.classes) > FEWEST_CLASSES:
            self.classes.remove(self.random.choice(self.classes))

    def reorder_classes(self):
        self.random.shuffle(self.classes)

    def change_key(self):
        key = self.random.choice(list(KEYS))
        self.keys[key] = self.random.choice(KEYS[key])

    def delete_result(self):
        found = (path for path in (self.root / RESULTS).rglob("*") if path.is_file())
        if results := sorted(path for path in found if path != self.answers):
            self.random.choice(results).unlink()

    def captioner_fails(self):
        self.captioner.is_out = True

    def answer(self):
        """Answer about images of the last run, as the page of `teach` does."""
        index = self.root / RESULTS / "images.parquet"
        if not index.exists():
            return
        table, names = tables.read_unlabelled(str(index), training=True)
        answers = {}
        for image_id in self.random.sample(table["image_id"].to_pylist(), 5):
            kind = self.random.choice(["class", "class", "none", "unsure"])
            classname = self.random.choice(names) if kind == "class" else None
            phase = self.random.choice(["teach", "check"])
            answers[image_id] = Answer(image_id, kind, classname, phase)
        AnswerFile(self.answers, table, names).update(answers)

    EDITS = (
        *(add_photo, delete_photo, rename_photo, replace_photo, spoil_photo),
        *(rename_class, add_class, remove_class, reorder_classes),
        *(change_key, captioner_fails, delete_result, answer),
    )

    def step(self):
        edit = self.random.choice(self.EDITS)
        edit(self)
        self.edits.append(edit.__name__)
        self.write()

    def write(self):
        """Write the classes, the captions and the configuration."""
        self.put("photos/classes.txt", "\n".join(self.classes))
        rows = ({"image_id": key, "caption": self.captions[key]} for key in self.captions)
        self.put("captions.jsonl", "\n".join(map(json.dumps, rows)))
        groups = ({"image_id": key, "caption": "cloths"} for key in self.captions)
        self.put("groups.jsonl", "\n".join(map(json.dumps, groups)))
        labellers = self.keys["labellers"]
        dataset = {
            "source": {"folder": "photos"},
            "clip": {"model": f"local-dir:{DEMO_CLIP}", "pretrained": None},
            **{key: self.keys[key] for key in KEYS if key != "labellers"},
            **({"labellers": labellers} if labellers else {}),
        }
        config = {"dataset": "mine", "datasets": {"mine": dataset}, "seeds": 1}
        config["method"] = ["zero_shot", "flyp", "latteclip"]
        self.put("mine.yaml", yaml.safe_dump(config))

    def put(self, name, text):
        """Write a file unless it says the same."""
        path = self.root / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

    def copy(self, root):
        """Copy what is the user's into a new folder, and the answers that were paid for."""
        shutil.copytree(self.photos, root / "photos")
        # Images beyond `max_images` keep their answers.
        if (asked := self.root / ASKED).exists():
            shutil.copytree(asked, root / ASKED)
        for name in ("captions.jsonl", "groups.jsonl", "mine.yaml"):
            shutil.copy2(self.root / name, root / name)
        if self.answers.exists():
            (root / RESULTS).mkdir(parents=True)
            shutil.copy2(self.answers, root / RESULTS)
        return root

    def run(self):
        """Run the workflow, and again where its captioner refused to answer."""
        found = run(self.root, self.goal, self.captioner)
        if self.captioner.is_out:
            self.captioner.is_out = False
            found = run(self.root, self.goal, self.captioner)
        return found


def run(root, goal, captioner):
    """Run the workflow in a folder; the results by name, or the sentence at the end."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    variables |= {"OPENAI_BASE_URL": captioner.url, "OPENAI_API_KEY": "key"}
    status, output = warm.run("snakemake", [*goal, *RUN], variables, root, stages=True)
    if status:
        assert "Traceback" not in output and "a bug" not in output, output
        return [line for line in output.splitlines() if line.startswith("error: ")][-1]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in (root / RESULTS).rglob("*")
        if path.is_file() and not NOT_COMPARED & set(path.parts)
        if not path.name.startswith(".")
    }


def walk_and_compare(folder, seed, captioner):
    walk = Walk(folder / "walk", seed, captioner)
    walk.run()
    for _ in range(STEPS // RUN_AFTER):
        for _ in range(RUN_AFTER):
            walk.step()
        found = walk.run()
    expected = run(walk.copy(folder / "new"), walk.goal, captioner)
    if isinstance(expected, str):
        assert found == expected, walk.edits
    else:
        assert isinstance(found, dict), (found, walk.edits)
        other = {key for key in expected if found.get(key) != expected[key]}
        assert not other, (other, walk.edits)  # files of former keys may be left
    return walk.edits, found


@pytest.mark.slow
@pytest.mark.fuzz
def test_edits_end_as_a_run_in_a_new_folder_does(tmp_path):
    until = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "0"))
    with serving(Captioner) as captioner:
        for seed in itertools.count():
            walk_and_compare(tmp_path / str(seed), seed, captioner)
            if time.monotonic() >= until:
                break

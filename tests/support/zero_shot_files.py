"""Index, pseudo-labels and class texts of a world, as the first stages write them."""

from support.tiny import write_index
from support.worlds import SCALE

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.core import tables
from latteclip.labels.answers import Answer, teaching_schema


class ZeroShotFiles:
    """Files of a world of which every fourth image is a test image."""

    def __init__(self, folder, world):
        self.folder, self.world = folder, world
        n, c = len(world.classes), len(world.texts)
        self.names = [f"{number:03d}.png" for number in range(n)]
        self.splits = ["test" if number % 4 == 3 else "train" for number in range(n)]
        self.labels = world.classes.tolist()
        self.classnames = [f"class {number}" for number in range(c)]
        self.described = {"classnames": self.classnames, "model": "m", "logit_scale": SCALE}

    @property
    def training(self):
        return [number for number, split in enumerate(self.splits) if split != "test"]

    def path(self, name):
        return str(self.folder / name)

    def write_index(self):
        index = self.path("images.parquet")
        return write_index(index, self.names, self.splits, self.labels, self.classnames)

    def write(self):
        """The paths of the three files."""
        index = self.write_index()
        n = len(self.names)
        columns = {
            "image_id": self.names,
            "split": self.splits,
            "pseudo_label": [0] * n,
            "confidence": [None] * n,
            "topk_labels": [[0]] * n,
            "topk_scores": [[0.5]] * n,
            "image_features": tables.list_column(self.world.features.numpy()),
        }
        pseudo_labels = self.path("pseudo_labels.parquet")
        texts = self.path("class_embeddings.safetensors")
        tables.write(pseudo_labels, columns, tables.PSEUDO_LABELS)
        save_classifier(texts, Classifier.of(self.world.texts), self.described)
        return index, pseudo_labels, texts

    def write_answers(self, rows, *more, drawn=()):
        """Answers with the true classes of images, "none" where a class has no name; their path."""
        answers = list(more)
        for row in rows:
            label = int(self.world.classes[row])
            name = self.classnames[label] if label < len(self.classnames) else None
            phase = "check" if row in drawn else "teach"
            answers.append(
                Answer(self.names[row], "class" if name else "none", name, phase)
            )
        path = self.folder / "answers.json"
        path.unlink(missing_ok=True)
        entries = {one.image_id: one for one in answers}
        index, _ = tables.read_unlabelled(self.write_index(), training=True)
        teaching_schema("made", self.classnames, index).update(path, entries)
        return str(path)

    def written(self, *names):
        """The bytes of files."""
        return [(self.folder / name).read_bytes() for name in names]

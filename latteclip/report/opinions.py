"""What the methods say of images, where no label is needed: numbers in, small tables out.

Letters: M methods, N images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latteclip.report import runs
from latteclip.report.figures import taking_turns
from latteclip.report.runs import Ints

BASELINE = "zero_shot"
METHODS = 8  # that are compared
ROWS = 1000  # classes in a table


@dataclass(frozen=True)
class Opinions:
    """What some methods say of the N images of a split."""

    methods: list[str]  # M
    labels: Ints  # [M, N]
    main: int  # the method of the run that the page is about
    base: int  # the one that it is compared with: zero-shot, where it was run
    said: runs.Said  # by the main one
    of: int  # methods that were run

    @property
    def before(self) -> Ints:
        found: Ints = self.labels[self.base]
        return found

    @property
    def after(self) -> Ints:
        found: Ints = self.labels[self.main]
        return found

    @property
    def answers(self) -> Ints:
        """How many different classes each image is given [N]."""
        ordered = np.sort(self.labels, axis=0)
        found: Ints = 1 + (np.diff(ordered, axis=0) != 0).sum(axis=0)
        return found


def read_opinions(
    run_files: Sequence[runs.RunFiles], split: runs.Split, main: runs.RunFiles
) -> Opinions:
    """What the methods say: the main one by the main run, each other by its first.

    Args:
        run_files: of all methods.
        split: the images that they were evaluated on.
        main: the run that the page is about.

    Raises:
        UserError: a file is not of the images of the split.
    """
    found: dict[str, str] = {}
    for run in sorted(run_files, key=lambda run: run.seed):
        found.setdefault(run.method, run.predictions)
    found[main.method] = main.predictions
    order = dict.fromkeys(run.method for run in run_files)
    base = BASELINE if BASELINE in found else next(iter(order))
    names = list(dict.fromkeys([base, main.method, *order]))[:METHODS]
    labels = np.stack([runs.read_labels(found[name], split) for name in names])
    said = runs.read_said(main.predictions, split)
    return Opinions(names, labels, names.index(main.method), 0, said, len(found))


@dataclass(frozen=True)
class Method:
    """How a method uses the classes."""

    classes: int  # that it gives to any image
    changed: float  # percent of the images that it gives another class than the base does


def methods(opinions: Opinions) -> dict[str, Method]:
    """How each method that is compared uses the classes."""
    return {
        name: Method(len(np.unique(labels)), 100 * float((labels != opinions.before).mean()))
        for name, labels in zip(opinions.methods, opinions.labels, strict=True)
    }


@dataclass(frozen=True)
class ClassSize:
    """How many images are of a class."""

    label: int
    true: int | None  # None where labels are not known
    before: int
    after: int
    each: list[int]  # by method


def class_sizes(opinions: Opinions, labels: Ints | None, c: int) -> list[ClassSize]:
    """The sizes of the C classes by each method, the largest first; at most ROWS of them."""
    counts = np.stack([np.bincount(one, minlength=c) for one in opinions.labels])  # [M, C]
    true = None if labels is None else np.bincount(labels, minlength=c)
    before, after = counts[opinions.base], counts[opinions.main]
    order = np.lexsort((-before, -after))[:ROWS]
    return [
        ClassSize(
            int(label),
            None if true is None else int(true[label]),
            int(before[label]),
            int(after[label]),
            counts[:, label].tolist(),
        )
        for label in order
    ]


@dataclass(frozen=True)
class Shift:
    """Images that one method gives one class and another method another."""

    before: int
    after: int
    images: int
    share: float  # of the images that were given the first class, in percent


def shifts(before: Ints, after: Ints, c: int, n: int) -> list[Shift]:
    """The n most frequent differences between two methods [N], of C classes."""
    differ = before != after
    pairs, counts = np.unique(
        before[differ].astype(np.int64) * c + after[differ], return_counts=True
    )
    sizes = np.bincount(before, minlength=c)
    return [
        Shift(
            int(pairs[i] // c),
            int(pairs[i] % c),
            int(counts[i]),
            100 * float(counts[i] / sizes[pairs[i] // c]),
        )
        for i in np.argsort(-counts, kind="stable")[:n]
    ]


def disputed(opinions: Opinions, n: int) -> list[int]:
    """The n images about which the methods differ most.

    Those come first that are given the most different classes, and then those of which the main
    method is surest; classes take turns.
    """
    answers = opinions.answers
    order = np.lexsort((-opinions.said.margins, -answers))
    return taking_turns(order[answers[order] > 1], opinions.after, n)


def sides(opinions: Opinions, i: int) -> list[tuple[int, list[str]]]:
    """The classes that an image is given and the methods that say so, most methods first."""
    found: dict[int, list[str]] = {}
    for name, label in zip(opinions.methods, opinions.labels[:, i].tolist(), strict=True):
        found.setdefault(label, []).append(name)
    return sorted(found.items(), key=lambda side: -len(side[1]))


@dataclass(frozen=True)
class Ends:
    """The images of a class of which the main method is surest, and least sure."""

    label: int
    images: int
    disputed: int  # of those, which other methods give another class
    surest: list[int]
    least: list[int]  # the least sure first


def ends_of_classes(opinions: Opinions, budget: int, most: int) -> list[Ends]:
    """The surest and the least sure images of each class that has any.

    Args:
        opinions: of N images.
        budget: images in all; where classes are too many for it, those come with whose images
            other methods disagree most.
        most: images of a class at each end.
    """
    margins, labels = opinions.said.margins, opinions.after
    order = np.lexsort((-margins, labels))
    sizes = np.bincount(labels)
    against = np.bincount(labels[opinions.answers > 1], minlength=len(sizes))
    starts = np.cumsum(sizes) - sizes
    present = np.flatnonzero(sizes)
    per = int(np.clip(budget // (2 * len(present)), 1, most))
    kept = present[np.lexsort((-sizes[present], -against[present]))][: budget // (2 * per)]
    found = []
    for label in sorted(kept.tolist()):
        own = order[starts[label] : starts[label] + sizes[label]].tolist()
        least = own[per:][-per:][::-1]
        found.append(Ends(label, len(own), int(against[label]), own[:per], least))
    return found

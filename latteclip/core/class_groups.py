"""Groups of classes, such as breeds in dogs and dogs in mammals: N images, C classes, G groups."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import csv_separator

Floats = npt.NDArray[np.floating]
KEY = "class_groups"
HEADER = ["class", "group"]


class Node(NamedTuple):
    """A class or a group on the way from all classes to one of them."""

    name: str
    members: frozenset[int]  # classes
    probability: float  # the sum of its classes


class ClassGroups:
    """A tree of groups whose leaves are the classes."""

    def __init__(
        self,
        parents: Mapping[str, str],
        classnames: Sequence[str],
        written: Sequence[str] = (),
    ) -> None:
        """Build the tree of classes and groups by their parents.

        Classes may be named as the dataset writes them, in `written`, too.

        UserError: a name without members is no class, a class has two names, or is also a group.
        """
        self.classnames = list(written or classnames)
        number: dict[str, int] = {}
        for names in (self.classnames, classnames):
            number |= {clean_classname(name): row for row, name in enumerate(names)}
        self._children: dict[str | None, list[str]] = {None: []}
        for child, parent in parents.items():
            self._children.setdefault(parent, []).append(child)
        for group in self._children:
            if group is not None and clean_classname(group) in number:
                raise UserError(
                    f"{KEY}: {group!r} is a class and a group; rename the group."
                )
        class_of = self._classes(parents, number)
        self._members = {child: frozenset([row]) for child, row in class_of.items()}
        self._names = {child: self.classnames[row] for child, row in class_of.items()}
        for row in sorted(set(number.values()) - set(class_of.values())):  # in no group
            self._children[None].append(self.classnames[row])
            self._members[self.classnames[row]] = frozenset([row])
        roots = dict.fromkeys(parents.values()).keys() - parents.keys()
        self._children[None] += sorted(roots)
        for group in self._children[None]:
            self._gather(group)

    def _classes(
        self, parents: Mapping[str, str], number: Mapping[str, int]
    ) -> dict[str, int]:
        """Return the class of each name without members, or raise UserError."""
        class_of: dict[str, int] = {}
        written: dict[int, str] = {}
        for child in parents:
            if child in self._children:
                continue
            if (row := number.get(clean_classname(child))) is None:
                raise UserError(
                    f"{KEY}: {child!r} is not a class of the dataset and has no members; "
                    f"{suggestion(clean_classname(child), number)}"
                )
            if row in written:
                raise UserError(
                    f"{KEY}: {written[row]!r} and {child!r} are one class; remove one of them."
                )
            written[row] = child
            class_of[child] = row
        return class_of

    def _gather(self, name: str) -> frozenset[int]:
        if name not in self._members:
            each = map(self._gather, self._children[name])
            self._members[name] = frozenset[int]().union(*each)
        return self._members[name]

    def path(self, probabilities: Floats) -> Iterator[Node]:
        """Yield the likeliest group, the likeliest within it, and so on to a class.

        `probabilities` [C] sum to 1, and those of the path fall.
        """
        name: str | None = None
        while name in self._children:
            shares = []
            for child in self._children[name]:
                shares.append(probabilities[list(self._members[child])].sum())
            best = int(np.argmax(shares))
            name = self._children[name][best]
            own_name = self._names.get(name, name)
            yield Node(own_name, self._members[name], float(shares[best]))

    def answer(self, probabilities: Floats, threshold: float) -> Node | None:
        """Return the finest class or group of the path with so high a probability, if any."""
        reaching = [n for n in self.path(probabilities) if n.probability >= threshold]
        return reaching[-1] if reaching else None

    def mistakes(
        self, probabilities: Floats, truth: Sequence[int | None]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return from which threshold on [n] an answer is no more wrong, and if one can be [n].

        `probabilities` [n, C] are of images of known classes, None for an image of no class. An
        answer is wrong where its group has not the class. A group that contains a right group is
        right, so a higher threshold makes no right answer wrong.
        """
        confidence = np.zeros(len(truth))
        is_wrong = np.zeros(len(truth), dtype=bool)
        for row, (shares, label) in enumerate(zip(probabilities, truth, strict=True)):
            for node in self.path(shares):
                if label not in node.members:
                    confidence[row] = node.probability
                    is_wrong[row] = True
                    break
        return confidence, is_wrong


def read_parents(given: Mapping[str, Any] | str | Path) -> dict[str, str]:
    """Return the group of each class and of each group that lies in another one.

    `given` is a mapping of classes to groups (`poodle: dog`), of groups to what they contain
    (`dog: [poodle, beagle]`, `mammal: {dog: [poodle]}`), or a CSV file with the columns class and
    group. UserError: something lies in two groups, in itself, or the file cannot be read.
    """
    pairs = _of_file(given) if isinstance(given, str | Path) else list(_of_mapping(given))
    parents: dict[str, str] = {}
    for child, parent in pairs:
        if not child or not parent:
            raise UserError(f"{KEY} has an empty name beside {child or parent!r}; fill it.")
        if parents.setdefault(child, parent) != parent:
            raise UserError(
                f"{KEY}: {child!r} lies in two groups, {parents[child]!r} and {parent!r}; "
                "remove one of them."
            )
    for child in parents:
        _refuse_cycle(parents, child)
    return parents


def _refuse_cycle(parents: Mapping[str, str], child: str) -> None:
    way = [child]
    while way[-1] in parents:
        way.append(parents[way[-1]])
        if way.count(way[-1]) > 1:
            words = " in ".join(way[way.index(way[-1]) :])
            raise UserError(f"{KEY} has a cycle: {words}; remove one of these lines.")


def _of_mapping(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in given.items():
        name = str(name).strip()
        if isinstance(value, Mapping):
            for child, below in value.items():
                yield str(child).strip(), name
                if isinstance(below, Mapping | list):
                    yield from _of_mapping({child: below})
                elif below is not None:
                    raise UserError(
                        f"{KEY}.{name}.{child} is {below!r}, neither a list nor a group; "
                        "correct it."
                    )
        elif isinstance(value, list):
            for child in value:
                yield str(child).strip(), name
        else:
            yield name, str(value if value is not None else "").strip()


def _of_file(path: str | Path) -> list[tuple[str, str]]:
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{KEY}: {path} cannot be read ({error}); correct it.") from None
    separator = csv_separator(text.partition("\n")[0])
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if row]
    if not rows or [cell.strip() for cell in rows[0]] != HEADER:
        raise UserError(f"{KEY}: {path} needs the header {','.join(HEADER)}.")
    pairs = []
    for row in rows[1:]:
        if len(row) != len(HEADER):
            raise UserError(
                f"{KEY}: {path} has the line {','.join(row)!r}, which is no class and group; "
                "correct it."
            )
        pairs.append((row[0].strip(), row[1].strip()))
    return pairs

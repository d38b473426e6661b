"""Classes that are proposed for images without class names, and what a person does with them.

A proposal has L leaves, which are small groups of images, and merges that join them to classes. A
class is a set of leaves, so that a split undoes the merge that joined it last. Actions are replayed
on the proposal in their order: the page does the same in its script.

Letters: N images, L leaves, C classes.
"""

import heapq
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.special
from pydantic import BaseModel, Field, ValidationError

from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError
from latteclip.discover import grouping
from latteclip.discover.grouping import Evidence, Groups, Merge, Sums
from latteclip.discover.looks import better_by_looks
from latteclip.discover.names import Names
from latteclip.discover.naming import UNNAMED, name_classes, term_counts

MAX_NAME = 100  # characters of a class name
MAX_ACTIONS = 10_000
LEAF = 2 * grouping.MIN_IMAGES  # images of a group that is divided into leaves, at least
ITERATIONS = 20  # of a division
TERMS = 12  # of a leaf that the page knows
ALIKE = 5  # classes with which a class may be asked to be the same
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SameWeights:
    """A logistic regression on the cosines of two groups' mean looks and mean names."""

    bias: float
    looks: float
    names: float


# Whether most images of both show the same, of proposed classes and of the parts of one.
CLASSES_SAME = SameWeights(-5.0, 7.0, 3.0)
PARTS_SAME = SameWeights(-2.0, 5.0, 2.0)


@dataclass(frozen=True)
class Proposal:
    """Leaves of N images, how they merge, and the classes that are suggested."""

    leaves: Ints  # [N]
    steps: list[Merge]  # of L leaves, until one is left
    classes: list[list[int]]  # the leaves of each class, ascending
    names: list[list[str]]  # of each class, the best first
    shares: list[list[float]]  # of the images of each class that have each name
    suggested: int  # the number of classes that the curve suggests
    sums: Sums  # of the leaves in looks and names
    unit: float  # of costs
    by_looks: bool  # names say little about looks, which alone formed the classes

    @cached_property
    def tree(self) -> list[int]:
        """Return the parent of each leaf, then of each merge; the last has none."""
        n_leaves = len(self.steps) + 1
        node, parent = list(range(n_leaves)), [-1] * (n_leaves + len(self.steps))
        for number, step in enumerate(self.steps, start=n_leaves):
            parent[node[step.into]] = parent[node[step.taken]] = number
            node[step.into] = number
        return parent

    @property
    def sizes(self) -> Ints:
        """Return the images [L] of each leaf."""
        return np.bincount(self.leaves, minlength=len(self.steps) + 1)

    def costs(self, classes: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Return the relative cost [C, C] of merging two of C classes, which are sets of leaves."""
        blocks = self.sums.joined(classes).blocks()
        rows = [sum(block.costs(k) for block in blocks) for k in range(len(classes))]
        return np.array(rows).reshape(len(classes), len(classes)) / self.unit

    def same(
        self, classes: Sequence[Sequence[int]], weights: SameWeights
    ) -> npt.NDArray[np.float64]:
        """Return the probability [C, C] that two of C classes, or sets of leaves, are one."""
        looks, names = (block.cosines() for block in self.sums.joined(classes).blocks())
        return scipy.special.expit(  # type: ignore[no-any-return]
            weights.bias + weights.looks * looks + weights.names * names
        )

    def labels(self, classes: Sequence[Sequence[int]] | None = None) -> Ints:
        """Return the class [N] of each image, -1 for none."""
        owner = np.full(len(self.steps) + 1, -1)
        for number, leaves in enumerate(self.classes if classes is None else classes):
            owner[list(leaves)] = number
        labels: Ints = owner[self.leaves]
        return labels


def propose(evidence: Evidence, n_classes: int | None = None) -> Proposal:
    """Propose classes of images: a given number, or as many as the curve of merges suggests."""
    groups = grouping.group(evidence)
    terms = evidence.terms
    merges = grouping.merges(evidence, groups.labels)
    suggested = grouping.suggested_number(merges, groups.n_groups)
    wanted = suggested if n_classes is None else n_classes
    better = better_by_looks(evidence, groups, merges, wanted)
    if better is not None:
        groups = better
        wanted = groups.n_groups
        evidence = evidence.without_names()
        merges = grouping.merges(evidence, groups.labels)
    leaves = divide(evidence, groups.labels)
    steps = _steps(groups, leaves, merges)
    owner = grouping.cut(steps, len(steps) + 1, wanted)
    classes = [
        np.flatnonzero(owner == k).tolist() for k in range(int(owner.max(initial=0)) + 1)
    ]
    named = name_classes(owner[leaves], terms, len(classes))
    unit = float(np.sqrt(len(leaves) / groups.n_groups / 2))
    sums = Sums.of(evidence, leaves)
    return Proposal(
        leaves,
        steps,
        classes,
        named.names,
        named.shares,
        suggested,
        sums,
        unit,
        by_looks=better is not None,
    )


def divide(evidence: Evidence, labels: Ints) -> Ints:
    """Return leaves [N]: each group that is large enough in two halves, by looks and names."""
    leaves = labels.copy()
    n_leaves = int(labels.max(initial=0)) + 1
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=n_leaves))
    for rows in np.split(order, ends[:-1]):
        if len(rows) < LEAF:
            continue
        names = evidence.names[rows]
        names = (
            names[:, np.unique(names.indices)].toarray() * evidence.reliability[rows, None]
        )
        x = np.hstack([evidence.looks[rows], np.sqrt(grouping.NAMES) * names])
        is_second = _halves(x)
        if min(is_second.sum(), (~is_second).sum()) >= grouping.MIN_IMAGES:
            leaves[rows[is_second]] = n_leaves
            n_leaves += 1
    return leaves


def _halves(x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """Return two halves of rows [n, D] by k-means that begins along the main direction."""
    x = x - x.mean(axis=0)
    direction = (
        np.linalg.svd(x @ x.T, hermitian=True)[0][:, 0] if len(x) <= 500 else x @ x[0]
    )
    is_second: npt.NDArray[np.bool_] = direction > np.median(direction)
    for _ in range(ITERATIONS):
        if not 0 < is_second.sum() < len(x):
            break
        first, second = x[~is_second].mean(axis=0), x[is_second].mean(axis=0)
        after = ((x - second) ** 2).sum(axis=1) < ((x - first) ** 2).sum(axis=1)
        if (after == is_second).all():
            break
        is_second = after
    return is_second


def _steps(groups: Groups, leaves: Ints, merges: list[Merge]) -> list[Merge]:
    """Return the merges of leaves: first the halves of each group, then the groups."""
    pairs = np.unique(np.stack([groups.labels, leaves], axis=1), axis=0)
    halves = [(int(k), int(leaf)) for k, leaf in pairs if k != leaf]
    return [
        *(Merge(k, leaf, 0.0) for k, leaf in halves),
        *merges,
    ]


# --- a person's actions --------------------------------------------------------------------------


class Action(BaseModel, extra="forbid"):
    """What a person does: the classes are numbers, which a split continues."""

    do: Literal["rename", "merge", "split", "drop", "none", "keep"]
    of: int = Field(ge=0)  # a class
    other: int | None = Field(default=None, ge=0)  # merge: the class that is taken into it
    name: str | None = Field(default=None, max_length=10 * MAX_NAME)  # rename
    image: str | None = Field(default=None, max_length=10_000)  # none: of no class


@dataclass
class State:
    """Classes by number after some actions."""

    leaves: dict[int, list[int]]
    names: dict[int, str]
    next_number: int
    none: set[str] = field(default_factory=set)  # images of no class
    dropped: list[int] = field(default_factory=list)  # leaves of no class
    asked: set[tuple[int, ...]] = field(
        default_factory=set
    )  # leaves of questions with an answer

    def key(self, *numbers: int | None) -> tuple[int, ...]:
        """Return the leaves of some classes, by which the answer to a question is known."""
        return tuple(
            sorted(leaf for k in numbers if k is not None for leaf in self.leaves[k])
        )


def start(proposal: Proposal) -> State:
    """Return the classes as they are proposed."""
    leaves = {k: list(one) for k, one in enumerate(proposal.classes)}
    names = {k: one[0] for k, one in enumerate(proposal.names)}
    return State(leaves, names, len(leaves))


def replay(proposal: Proposal, actions: Sequence[Action]) -> State:
    """Return the classes after some actions. UserError: an action that the classes do not allow."""
    state = start(proposal)
    for number, action in enumerate(actions):
        if problem := apply(state, action, proposal):
            raise UserError(f"Action {number + 1} of classes.json, {action.do}: {problem}")
    return state


def apply(state: State, action: Action, proposal: Proposal) -> str:
    """Apply an action to the classes, or return why it cannot be."""
    if action.of not in state.leaves or action.other not in (None, *state.leaves):
        return f"there is no class {action.of if action.other is None else action.other}."
    if action.do in ("keep", "split", "merge"):
        state.asked.add(state.key(action.of, action.other))
    if action.do == "rename":
        name = class_name(action.name or "")
        others = {clean_classname(one) for k, one in state.names.items() if k != action.of}
        if not name or clean_classname(name) in others:
            return f"the name {(action.name or '')[:MAX_NAME]!r} is empty or in use."
        state.names[action.of] = name
    elif action.do == "merge":
        if action.other is None or action.other == action.of:
            return "there is no other class."
        state.leaves[action.of] = sorted(
            state.leaves[action.of] + state.leaves.pop(action.other)
        )
        del state.names[action.other]
    elif action.do == "split":
        parts = split(state.leaves[action.of], proposal.tree)
        if not parts:
            return f"the class {state.names[action.of]!r} cannot be split further."
        state.leaves[action.of], state.leaves[state.next_number] = parts
        state.names[state.next_number] = _free_name(state, action.of)
        state.next_number += 1
    elif action.do == "drop":
        state.dropped += state.leaves.pop(action.of)
        del state.names[action.of]
    elif action.do == "none" and action.image:
        state.none ^= {action.image}
    return ""


def class_name(text: str) -> str:
    """Return a name on one line, without control characters, of at most MAX_NAME characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(plain.split())[:MAX_NAME].strip()


def _free_name(state: State, of: int) -> str:
    taken = {clean_classname(one) for one in state.names.values()}
    number = 2
    while clean_classname(f"{state.names[of]} {number}") in taken:
        number += 1
    return f"{state.names[of]} {number}"


def split(leaves: Sequence[int], tree: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Return the two parts of a class that merged last, the one with its first leaf first.

    The tree has the parent of each node: leaves, then merges in their order.
    """
    inside = {leaf: [leaf] for leaf in leaves}
    nodes = sorted(inside)
    while len(inside) > 1:
        node = heapq.heappop(nodes)
        part, above = inside.pop(node), tree[node]
        if above not in inside:
            heapq.heappush(nodes, above)
            inside[above] = part
        elif len(inside) > 1:
            inside[above] = inside[above] + part
        else:
            first, second = sorted((inside[above], part), key=min)
            return sorted(first), sorted(second)
    return None


@dataclass(frozen=True)
class ClassQuestion:
    """Whether two classes are the same, or a class holds two."""

    do: Literal["merge", "split"]
    of: int
    other: int | None
    gain: float  # images that are expected to change


def questions(
    proposal: Proposal, state: State, n: int | None = None
) -> list[ClassQuestion]:
    """Return what to ask, first where most images are expected to change.

    Asked are whether a class is the same as one of those most like it, and whether the two parts
    that it was merged from are the same. Answered questions are left out.
    """
    numbers = [k for k in sorted(state.leaves) if state.leaves[k]]
    asked = [*_merges(proposal, state, numbers), *_splits(proposal, state, numbers)]
    asked.sort(key=lambda one: (-one.gain, one.do, one.of, one.other or 0))
    fresh = (one for one in asked if state.key(one.of, one.other) not in state.asked)
    return list(itertools.islice(fresh, n))


def _merges(
    proposal: Proposal, state: State, numbers: list[int]
) -> Iterator[ClassQuestion]:
    """Yield whether each class is the same as one of ALIKE others."""
    classes = [state.leaves[k] for k in numbers]
    same = proposal.same(classes, CLASSES_SAME)
    n_images = np.array([proposal.sizes[leaves].sum() for leaves in classes])
    gains = same * np.minimum(n_images, n_images[:, None])
    np.fill_diagonal(gains, -1)
    nearest = np.argsort(-gains, axis=1, kind="stable")[:, : min(ALIKE, len(numbers) - 1)]
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row}
    for pair in sorted(pairs):
        large, small = sorted(pair, key=lambda one: (-n_images[one], one))
        gain = float(gains[large, small])
        yield ClassQuestion("merge", numbers[large], numbers[small], gain)


def _splits(
    proposal: Proposal, state: State, numbers: list[int]
) -> Iterator[ClassQuestion]:
    """Yield whether each class is two."""
    for k in numbers:
        if parts := split(state.leaves[k], proposal.tree):
            same = proposal.same(parts, PARTS_SAME)[0, 1]
            least = min(int(proposal.sizes[part].sum()) for part in parts)
            yield ClassQuestion("split", k, None, float(least * (1 - same)))


def parse_actions(content: bytes | str, where: str) -> list[Action]:
    """Read the actions of a page. UserError: what is not a list of them."""
    try:
        values = json.loads(content)["actions"]
        if not isinstance(values, list) or len(values) > MAX_ACTIONS:
            raise ValueError(f"not a list of at most {MAX_ACTIONS}")
        return [Action.model_validate(value) for value in values]
    except (ValueError, LookupError, TypeError, RecursionError, ValidationError) as error:
        first = str(error).splitlines()[0][:200]
        raise UserError(
            f"{where} holds no actions of `latteclip classes` ({first})."
        ) from None


# --- what a person sees --------------------------------------------------------------------------


def parents(proposal: Proposal) -> dict[int, int]:
    """Return the class whose name a class's name ends with: of "sea turtle" that is "turtle"."""
    number = {names[0]: k for k, names in enumerate(proposal.names)}
    parent_of = {}
    for k, names in enumerate(proposal.names):
        words = names[0].split()
        for start in range(1, len(words)):
            parent = " ".join(words[start:])
            if parent in number:
                parent_of[k] = number[parent]
                break
    return parent_of


def leaf_terms(proposal: Proposal, names: Names) -> list[dict[str, int]]:
    """Return the most frequent terms of each leaf, with the number of its images."""
    n_leaves = len(proposal.steps) + 1
    table = term_counts(proposal.leaves, names, n_leaves)
    terms_of = []
    for leaf in range(n_leaves):
        row = table[leaf]
        order = np.lexsort((row.indices, -row.data))[:TERMS]
        terms = (names.terms[row.indices[place]] for place in order)
        terms_of.append(dict(zip(terms, row.data[order].tolist(), strict=True)))
    return terms_of


def is_unnamed(name: str) -> bool:
    """Return whether a class has no name of its own."""
    return name.startswith(f"{UNNAMED} ")

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
from latteclip.discover.names import Ints, Names
from latteclip.discover.naming import UNNAMED, name_classes, term_counts

MAX_NAME = 100  # characters of a class name
MAX_ACTIONS = 10_000
LEAF = 2 * grouping.MIN_IMAGES  # images of a group that is divided into leaves, at least
ITERATIONS = 20  # of a division
EXACT = 500  # images of a group whose main direction is computed, at most
TERMS = 12  # of a leaf that the page knows
ALIKE = 5  # classes with which a class may be asked to be the same


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
        """Return the parent of each leaf, then of each merge. The last has none."""
        n_leaves = len(self.steps) + 1
        node = list(range(n_leaves))
        parent = [-1] * (n_leaves + len(self.steps))
        for number, step in enumerate(self.steps, start=n_leaves):
            parent[node[step.into]] = number
            parent[node[step.taken]] = number
            node[step.into] = number
        return parent

    @property
    def first_names(self) -> list[str]:
        """Return the best name of each class."""
        return [names[0] for names in self.names]

    @property
    def sizes(self) -> Ints:
        """Return the images [L] of each leaf."""
        return np.bincount(self.leaves, minlength=len(self.steps) + 1)

    def costs(self, classes: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Return the relative cost [C, C] of merging two of C classes, which are sets of leaves."""
        n = len(classes)
        blocks = self.sums.joined(classes).blocks()
        rows = [sum(block.costs(k) for block in blocks) for k in range(n)]
        return np.array(rows).reshape(n, n) / self.unit

    def same(
        self, classes: Sequence[Sequence[int]], weights: SameWeights
    ) -> npt.NDArray[np.float64]:
        """Return the probability [C, C] that two of C classes, or sets of leaves, are one."""
        looks, names = (block.cosines() for block in self.sums.joined(classes).blocks())
        logits = weights.bias + weights.looks * looks + weights.names * names
        return scipy.special.expit(logits)  # type: ignore[no-any-return]

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
    n_cut = int(owner.max(initial=0)) + 1
    classes = [np.flatnonzero(owner == k).tolist() for k in range(n_cut)]
    named = name_classes(owner[leaves], terms, n_cut)
    return Proposal(
        leaves=leaves,
        steps=steps,
        classes=classes,
        names=named.names,
        shares=named.shares,
        suggested=suggested,
        sums=Sums.of(evidence, leaves),
        unit=float(np.sqrt(len(leaves) / groups.n_groups / 2)),
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
        all_names = evidence.names[rows]
        used = all_names[:, np.unique(all_names.indices)].toarray()
        names = used * evidence.reliability[rows, None]
        x = np.hstack([evidence.looks[rows], np.sqrt(grouping.NAMES) * names])
        is_second = _halves(x)
        if min(is_second.sum(), (~is_second).sum()) >= grouping.MIN_IMAGES:
            leaves[rows[is_second]] = n_leaves
            n_leaves += 1
    return leaves


def _halves(x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """Return two halves of rows [n, D] by k-means that begins along the main direction."""
    x = x - x.mean(axis=0)
    if len(x) <= EXACT:
        vectors, _, _ = np.linalg.svd(x @ x.T, hermitian=True)
        direction = vectors[:, 0]
    else:
        direction = x @ x[0]
    is_second: npt.NDArray[np.bool_] = direction > np.median(direction)
    for _ in range(ITERATIONS):
        if not 0 < is_second.sum() < len(x):
            break
        from_first = x - x[~is_second].mean(axis=0)
        from_second = x - x[is_second].mean(axis=0)
        after = (from_second**2).sum(axis=1) < (from_first**2).sum(axis=1)
        if (after == is_second).all():
            break
        is_second = after
    return is_second


def _steps(groups: Groups, leaves: Ints, merges: list[Merge]) -> list[Merge]:
    """Return the merges of leaves: first the halves of each group, then the groups."""
    pairs = np.unique(np.stack([groups.labels, leaves], axis=1), axis=0).tolist()
    halves = [Merge(k, leaf, 0.0) for k, leaf in pairs if k != leaf]
    return halves + merges


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
    # Leaves of the questions that have an answer.
    asked: set[tuple[int, ...]] = field(default_factory=set)

    def key(self, of: int, other: int | None) -> tuple[int, ...]:
        """Return the leaves of a question's classes, by which its answer is known."""
        others = [] if other is None else self.leaves[other]
        return tuple(sorted(self.leaves[of] + others))


def start(proposal: Proposal) -> State:
    """Return the classes as they are proposed."""
    leaves = dict(enumerate(map(list, proposal.classes)))
    names = dict(enumerate(proposal.first_names))
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
        return _rename(state, action.of, action.name or "")
    if action.do == "merge":
        if action.other is None or action.other == action.of:
            return "there is no other class."
        state.leaves[action.of] += state.leaves.pop(action.other)
        state.leaves[action.of].sort()
        del state.names[action.other]
    elif action.do == "split":
        parts = split(state.leaves[action.of], proposal.tree)
        if not parts:
            return f"the class {state.names[action.of]!r} cannot be split further."
        new = state.next_number
        state.leaves[action.of], state.leaves[new] = parts
        state.names[new] = _free_name(state, action.of)
        state.next_number += 1
    elif action.do == "drop":
        state.dropped += state.leaves.pop(action.of)
        del state.names[action.of]
    elif action.do == "none" and action.image:
        state.none ^= {action.image}
    return ""


def _rename(state: State, of: int, wanted: str) -> str:
    """Give a class another name, or return why it cannot have it."""
    name = class_name(wanted)
    others = [other for k, other in state.names.items() if k != of]
    if not name or clean_classname(name) in map(clean_classname, others):
        return f"the name {wanted[:MAX_NAME]!r} is empty or in use."
    state.names[of] = name
    return ""


def class_name(text: str) -> str:
    """Return a name on one line, without control characters, of at most MAX_NAME characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(plain.split())[:MAX_NAME].strip()


def _free_name(state: State, of: int) -> str:
    """Return the name of a class with a number, of which no class has the name."""
    taken = set(map(clean_classname, state.names.values()))
    numbered = (f"{state.names[of]} {number}" for number in itertools.count(2))
    return next(name for name in numbered if clean_classname(name) not in taken)


def split(leaves: Sequence[int], tree: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Return the two parts of a class that merged last, the one with its first leaf first.

    The tree has the parent of each node: leaves, then merges in their order.
    """
    inside = {leaf: [leaf] for leaf in leaves}
    nodes = sorted(inside)
    while len(inside) > 1:
        node = heapq.heappop(nodes)
        part = inside.pop(node)
        above = tree[node]
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

    def order(question: ClassQuestion) -> tuple[float, str, int, int]:
        return -question.gain, question.do, question.of, question.other or 0

    def is_open(question: ClassQuestion) -> bool:
        return state.key(question.of, question.other) not in state.asked

    first = filter(is_open, sorted(asked, key=order))
    return list(itertools.islice(first, n))


def _merges(
    proposal: Proposal, state: State, numbers: list[int]
) -> Iterator[ClassQuestion]:
    """Yield whether each class is the same as one of ALIKE others."""
    classes = [state.leaves[k] for k in numbers]
    same = proposal.same(classes, CLASSES_SAME)
    sizes = proposal.sizes
    n_images = np.array([sizes[leaves].sum() for leaves in classes])
    gains = same * np.minimum(n_images, n_images[:, None])
    np.fill_diagonal(gains, -1)
    n_alike = min(ALIKE, len(numbers) - 1)
    nearest = np.argsort(-gains, axis=1, kind="stable")[:, :n_alike]
    pairs = set()
    for i, row in enumerate(nearest.tolist()):
        pairs |= {(min(i, j), max(i, j)) for j in row}
    for pair in sorted(pairs):
        large, small = sorted(pair, key=lambda k: (-n_images[k], k))
        gain = float(gains[large, small])
        yield ClassQuestion("merge", numbers[large], numbers[small], gain)


def _splits(
    proposal: Proposal, state: State, numbers: list[int]
) -> Iterator[ClassQuestion]:
    """Yield whether each class is two."""
    sizes = proposal.sizes
    for k in numbers:
        if parts := split(state.leaves[k], proposal.tree):
            same = proposal.same(parts, PARTS_SAME)[0, 1]
            least = min(int(sizes[part].sum()) for part in parts)
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
    number = {name: k for k, name in enumerate(proposal.first_names)}
    parent_of = {}
    for name, k in number.items():
        words = name.split()
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
        terms = [names.terms[term] for term in row.indices[order]]
        terms_of.append(dict(zip(terms, row.data[order].tolist(), strict=True)))
    return terms_of


def is_unnamed(name: str) -> bool:
    """Return whether a class has no name of its own."""
    return name.startswith(f"{UNNAMED} ")

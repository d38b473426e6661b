"""Names in the answers of a captioner: cleaned, divided into terms, and weighted by looks.

A term is one word or several of a name. "Harley Davidson motorcycle" has the terms "harley
davidson motorcycle", "harley davidson", "davidson motorcycle", and its three words. How well a term
fits looks is how often the images nearest to its images have it too. So "red" and "standing" carry
little weight, and no list of such words is needed.

Letters: N images, T terms, D embedding width.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

MAX_ANSWER = 2_000  # characters of an answer that are read
MAX_WORDS, MAX_WORD = 4, 40  # of a term, and characters of a word
MAX_PHRASES = 40  # of an answer
MIN_IMAGES = 3  # of a term: fewer tell nothing about looks
MAX_TERMS = 20_000  # the most frequent ones
NEIGHBOURS = 10
QUERIES = 16_384  # images whose neighbours are searched, about: of each term as many
OF_A_TERM = 2  # at least
ROWS = 256  # images that are compared with all at once
FREQUENCY_EXPONENT = 0.5  # of the logarithm of N over a term's images, in its weight
Floats = npt.NDArray[np.float32]

_MARKS = re.compile(r"<\|?/?\w{1,20}\|?>")  # of models and of HTML
_SEPARATORS = re.compile(r"[,;:.!?/|\n\r\t\u2022\u3001\u3002]+|\s-\s|--+")
_SENTENCE = re.compile(
    r"^(?:(?:the|this|an?|it|there|in the) )?(?:main )?"
    r"(?:(?:object|image|picture|photo\w*|item|subject)s? )?"
    r"(?:(?:in|of) the (?:image|picture|photo\w*) )?"
    r"(?:is|are|shows?|depicts?|contains?|features?) "
)
_OPENING = re.compile(
    r"^(?:(?:an?|the|some) )?(?:(?:close ?up|black and white|\w+) )?"
    r"(?:photo\w*|picture|image|view|pair|bunch|group|lot|close ?up|kind|type|piece|set)s? of "
)
# After one of these, an answer says where something is or what it does.
_REST = re.compile(
    r"\b(?:in|on|with|and|at|of|by|for|from|to|under|over|near|against|behind|inside|beside|front"
    r"|next|is|are|was|has|have|that|which|who|while|wearing|standing|sitting|smiling|holding"
    r"|showing)\b"
)
_EMPTY = re.compile(
    r"an?|the|this|that|these|those|its?|is|are|very|some|there|one|two|three|several|many|few"
    r"|other|his|her|their|i|you|we|not|no|s"
)


def singular(word: str) -> str:
    """Return an English word without the ending of its plural, where it has one."""
    if len(word) <= 3 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word.removesuffix("s")


def phrases(answer: str) -> list[str]:
    """Return the names in an answer: in lower case, without articles and places."""
    result = []
    text = _MARKS.sub(" ", answer[:MAX_ANSWER]).lower()
    for part in _SEPARATORS.split(text)[:MAX_PHRASES]:
        plain = part.replace("\u2019", "'").replace("'s ", " ")
        plain = " ".join(re.sub(r"[^\w' ]+|_", " ", plain).replace("'", "").split())
        plain = _OPENING.sub("", _SENTENCE.sub("", plain))
        pieces = map(_full_words, _REST.split(plain))
        words = [word[:MAX_WORD] for word in next(filter(None, pieces), [])]
        if words:
            result.append(" ".join(words))
    return result


def _full_words(text: str) -> list[str]:
    return [word for word in text.split() if not _EMPTY.fullmatch(word)]


def without_plurals(listed: Sequence[list[str]]) -> list[list[str]]:
    """Return names with their last words in the singular, where that is a word of the answers."""
    known = {word for one in listed for phrase in one for word in phrase.split()}

    def plain(phrase: str) -> str:
        start, space, last = phrase.rpartition(" ")
        one = singular(last)
        return start + space + (one if one in known else last)

    return [[plain(phrase) for phrase in one] for one in listed]


def terms_of(phrase: str) -> Iterator[str]:
    """Yield the terms of a name, each once, the longest first."""
    words = phrase.split()
    seen = set()
    for length in range(min(MAX_WORDS, len(words)), 0, -1):
        for start in range(len(words) - length + 1):
            term = " ".join(words[start : start + length])
            if term not in seen:
                seen.add(term)
                yield term


@dataclass(frozen=True)
class Names:
    """The terms of N images."""

    terms: list[str]
    counts: scipy.sparse.csr_matrix  # [N, T] float32: names of an image that hold the term
    whole: npt.NDArray[np.int64]  # [T] images of which the term is a whole name

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """Return the number [T] of images that have each term."""
        return np.bincount(self.counts.indices, minlength=len(self.terms))


def read_names(answers: Sequence[str], minimum: int = MIN_IMAGES) -> Names:
    """Return the terms that at least so many of the answers have, most frequent first."""
    listed = without_plurals([phrases(answer) for answer in answers])
    held = [Counter(term for phrase in one for term in terms_of(phrase)) for one in listed]
    images = Counter(term for one in held for term in one)
    whole = Counter(phrase for one in listed for phrase in set(one))
    often = [term for term, n in images.most_common() if n >= minimum]
    terms = sorted(often[:MAX_TERMS], key=lambda term: (-images[term], term))
    number = {term: place for place, term in enumerate(terms)}
    rows, columns, values = [], [], []
    for row, one in enumerate(held):
        for term, n in one.items():
            if term in number:
                rows.append(row)
                columns.append(number[term])
                values.append(n)
    shape = len(answers), len(terms)
    counts = scipy.sparse.csr_matrix((values, (rows, columns)), shape, dtype=np.float32)
    counts.sort_indices()
    return Names(terms, counts, np.array([whole[term] for term in terms], np.int64))


def predictability(looks: Floats, names: Names) -> Floats:
    """Return how well looks predict each term [T], from 0 (chance) to 1, by features [N, D].

    It is the share of the nearest images of a term's images that have the term as well.
    """
    n_images, images = len(looks), names.images
    if n_images < 2 or not names.terms:
        return np.zeros(len(names.terms), np.float32)
    unit = looks / np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), 1e-9)
    queries = _queries(names, n_images)
    has = names.counts.astype(bool).astype(np.float32)
    # A term of few images can be found in as few of the neighbours.
    reach = np.clip(images - 1, 1, min(NEIGHBOURS, n_images - 1))
    hits, asked = np.zeros(len(images)), np.zeros(len(images))
    for start in range(0, len(queries), ROWS):
        rows = queries[start : start + ROWS]
        nearest = _nearest(unit, rows)
        own = has[rows]
        asked += np.asarray(own.sum(axis=0)).ravel()
        for place in range(nearest.shape[1]):
            both = np.asarray(own.multiply(has[nearest[:, place]]).sum(axis=0)).ravel()
            hits += both * (place < reach)
    share = hits / np.maximum(asked * reach, 1)
    chance = (images - 1) / (n_images - 1)
    weights: Floats = np.clip((share - chance) / np.maximum(1 - chance, 1e-9), 0, 1)
    return weights.astype(np.float32)


def _queries(names: Names, n_images: int) -> npt.NDArray[np.int64]:
    """Return rows: all if they are few, else some of each term, evenly spaced."""
    if n_images <= QUERIES:
        return np.arange(n_images)
    by_term = names.counts.tocsc()
    ends = zip(by_term.indptr, by_term.indptr[1:], strict=False)
    columns = [by_term.indices[start:end] for start, end in ends]
    wanted = max(OF_A_TERM, QUERIES // len(columns))
    some = [rows[:: -(-len(rows) // wanted)] for rows in columns]
    return np.unique(np.concatenate(some)).astype(np.int64)


def _nearest(unit: Floats, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the images [n, NEIGHBOURS] nearest to some rows, nearest first, without the row."""
    cosines = unit[rows] @ unit.T
    cosines[np.arange(len(rows)), rows] = -np.inf
    k = min(NEIGHBOURS, len(unit) - 1)
    best = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1, kind="stable")
    nearest: npt.NDArray[np.int64] = np.take_along_axis(best, order, axis=1)
    return nearest


def weighted(
    names: Names, weights: Floats
) -> tuple[scipy.sparse.csr_matrix, Floats, npt.NDArray[np.int64]]:
    """Return the names of images by the weights of their terms [T].

    They are rows [N, T] of length 1, or 0 without a name, the reliability [N] of each, which is
    the largest weight of its terms, and the term [N] that has it, -1 without one. Of equal terms
    the more frequent one counts.
    """
    counts, n_images = names.counts, names.counts.shape[0]
    rarity = (
        np.log(np.maximum(n_images / np.maximum(names.images, 1), 1)) ** FREQUENCY_EXPONENT
    )
    rows = np.repeat(np.arange(n_images), np.diff(counts.indptr))
    rated = weights[counts.indices]
    values = np.sqrt(counts.data) * rated * rarity[counts.indices]
    lengths = np.sqrt(np.bincount(rows, values**2, minlength=n_images))
    table = counts.copy()
    table.data = (values / np.maximum(lengths[rows], 1e-9)).astype(np.float32)
    reliability = np.zeros(n_images, np.float32)
    np.maximum.at(reliability, rows, rated)
    # Of names that an image has several times, the more frequent ones.
    strength = counts.data * rated
    best = np.full(n_images, -1)
    order = np.lexsort((counts.indices, -strength, rows))  # terms are in order of frequency
    first = order[np.flatnonzero(np.diff(rows[order], prepend=-1))]
    named = first[strength[first] > 0]
    best[rows[named]] = counts.indices[named]
    return table, reliability, best

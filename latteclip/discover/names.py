"""Names in the answers of a captioner: cleaned, divided into terms, and weighted by features.

A term is one word or several of a name. "Harley Davidson motorcycle" has the terms "harley
davidson motorcycle", "harley davidson", "davidson motorcycle", and its three words. The weight of a
term is how often the images nearest to its images have it too. So "red" and "standing" weigh
little, and no list of such words is needed.

Letters: N images, T terms, D embedding width.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

MAX_ANSWER = 2_000  # characters of an answer that are read
MAX_WORDS = 4  # of a term
MAX_WORD = 40  # characters
MAX_PHRASES = 40  # of an answer
MIN_IMAGES = 3  # of a term
MAX_TERMS = 20_000  # the most frequent ones
NEIGHBOURS = 10
QUERIES = 16_384  # images whose neighbours are searched, about as many of each term
MIN_QUERIES = 2  # of a term
ROWS = 256  # images that are compared with all at once
FREQUENCY_EXPONENT = 0.5  # of the logarithm of N over a term's images, in its weight
TINY = 1e-9
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

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
    names = []
    text = _MARKS.sub(" ", answer[:MAX_ANSWER]).lower()
    for part in _SEPARATORS.split(text)[:MAX_PHRASES]:
        pieces = map(_full_words, _REST.split(_without_opening(part)))
        words = next(filter(None, pieces), None)
        if words:
            names.append(" ".join(word[:MAX_WORD] for word in words))
    return names


def _without_opening(part: str) -> str:
    """Return a part of an answer without signs, and without words such as "this is a photo of"."""
    plain = part.replace("\u2019", "'").replace("'s ", " ")
    plain = re.sub(r"[^\w' ]+|_", " ", plain).replace("'", "")
    plain = " ".join(plain.split())
    return _OPENING.sub("", _SENTENCE.sub("", plain))


def _full_words(text: str) -> list[str]:
    return [word for word in text.split() if not _EMPTY.fullmatch(word)]


def without_plurals(listed: Sequence[list[str]]) -> list[list[str]]:
    """Return names with their last words in the singular, where that is a word of the answers."""
    known: set[str] = set()
    for phrase in itertools.chain(*listed):
        known.update(phrase.split())

    def plain(phrase: str) -> str:
        start, space, last = phrase.rpartition(" ")
        without_ending = singular(last)
        return start + space + (without_ending if without_ending in known else last)

    return [list(map(plain, names)) for names in listed]


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
    whole: Ints  # [T] images of which the term is a whole name

    @property
    def images(self) -> Ints:
        """Return the number [T] of images that have each term."""
        return np.bincount(self.counts.indices, minlength=len(self.terms))


def read_names(answers: Sequence[str]) -> Names:
    """Return the terms that at least MIN_IMAGES of the answers have, most frequent first."""
    listed = without_plurals([phrases(answer) for answer in answers])
    terms_of_image = [
        Counter(itertools.chain.from_iterable(map(terms_of, names))) for names in listed
    ]
    images = Counter(itertools.chain.from_iterable(terms_of_image))
    whole = Counter(itertools.chain.from_iterable(map(set, listed)))
    often = [term for term, n in images.most_common() if n >= MIN_IMAGES]
    terms = sorted(often[:MAX_TERMS], key=lambda term: (-images[term], term))
    number = {term: place for place, term in enumerate(terms)}
    rows = []
    columns = []
    values = []
    for row, counted in enumerate(terms_of_image):
        for term, n in counted.items():
            if term in number:
                rows.append(row)
                columns.append(number[term])
                values.append(n)
    shape = len(answers), len(terms)
    counts = scipy.sparse.csr_matrix((values, (rows, columns)), shape, dtype=np.float32)
    counts.sort_indices()
    return Names(terms, counts, np.array([whole[term] for term in terms], np.int64))


def predictability(features: Floats, names: Names) -> Floats:
    """Return how well features [N, D] predict each term [T], from 0 (chance) to 1.

    It is the share of the nearest images of a term's images that have the term as well.
    """
    n_images = len(features)
    images = names.images
    if n_images < 2 or not names.terms:
        return np.zeros(len(names.terms), np.float32)
    unit = normalised(features)
    queries = _queries(names, n_images)
    has = names.counts.astype(bool).astype(np.float32)
    # A term of few images can be found in as few of the neighbours.
    reach = np.clip(images - 1, 1, min(NEIGHBOURS, n_images - 1))
    hits = np.zeros(len(images))
    asked = np.zeros(len(images))
    for start in range(0, len(queries), ROWS):
        rows = queries[start : start + ROWS]
        nearest = _nearest(unit, rows)
        terms = has[rows]
        asked += np.asarray(terms.sum(axis=0)).ravel()
        for place in range(nearest.shape[1]):
            both = terms.multiply(has[nearest[:, place]])
            hits += np.asarray(both.sum(axis=0)).ravel() * (place < reach)
    share = hits / np.maximum(asked * reach, 1)
    chance = (images - 1) / (n_images - 1)
    beyond_chance = (share - chance) / np.maximum(1 - chance, TINY)
    weights: Floats = np.clip(beyond_chance, 0, 1).astype(np.float32)
    return weights


def normalised(features: Floats) -> Floats:
    """Return features [N, D] of length 1, or 0."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Floats = features / np.maximum(lengths, TINY)
    return unit


def _queries(names: Names, n_images: int) -> Ints:
    """Return rows: all if they are few, else some of each term, evenly spaced."""
    if n_images <= QUERIES:
        return np.arange(n_images)
    by_term = names.counts.tocsc()
    columns = np.split(by_term.indices, by_term.indptr[1:-1])
    wanted = max(MIN_QUERIES, QUERIES // len(columns))
    some = [rows[:: math.ceil(len(rows) / wanted)] for rows in columns]
    return np.unique(np.concatenate(some)).astype(np.int64)


def _nearest(unit: Floats, rows: Ints) -> Ints:
    """Return the images [n, NEIGHBOURS] nearest to some rows, nearest first, without the row."""
    distances = -(unit[rows] @ unit.T)
    distances[np.arange(len(rows)), rows] = np.inf
    k = min(NEIGHBOURS, len(unit) - 1)
    best = np.argpartition(distances, k - 1, axis=1)[:, :k]
    of_best = np.take_along_axis(distances, best, axis=1)
    order = np.argsort(of_best, axis=1, kind="stable")
    nearest: Ints = np.take_along_axis(best, order, axis=1)
    return nearest


def weighted(names: Names, weights: Floats) -> tuple[scipy.sparse.csr_matrix, Floats, Ints]:
    """Return the names of images by the weights of their terms [T].

    They are rows [N, T] of length 1, or 0 without a name, the reliability [N] of each, which is
    the largest weight of its terms, and the term [N] that has it, -1 without one. Of equal terms
    the more frequent one counts.
    """
    counts = names.counts
    n_images = counts.shape[0]
    images_of_term = np.maximum(names.images, 1)
    ratio = np.maximum(n_images / images_of_term, 1)
    rarity = np.log(ratio) ** FREQUENCY_EXPONENT
    rows = np.repeat(np.arange(n_images), np.diff(counts.indptr))
    terms = counts.indices  # in order of frequency
    rated = weights[terms]
    values = np.sqrt(counts.data) * rated * rarity[terms]
    squares = np.bincount(rows, values**2, minlength=n_images)
    lengths = np.maximum(np.sqrt(squares), TINY)
    table = counts.copy()
    table.data = (values / lengths[rows]).astype(np.float32)
    reliability = np.zeros(n_images, np.float32)
    np.maximum.at(reliability, rows, rated)
    # Of names that an image has several times, the more frequent ones.
    strength = counts.data * rated
    order = np.lexsort((terms, -strength, rows))
    is_first = np.diff(rows[order], prepend=-1) > 0
    first = order[is_first]
    named = first[strength[first] > 0]
    best = np.full(n_images, -1)
    best[rows[named]] = terms[named]
    return table, reliability, best

"""Names in the answers of a captioner: cleaned, divided into terms, and weighted by features.

A term is one word or several of a name. "Harley Davidson motorcycle" has the terms "harley
davidson motorcycle", "harley davidson", "davidson motorcycle", and its three words. The weight of a
term is how often the images nearest to its images have it too. So "red" and "standing" weigh
little, and no list of such words is needed.

Letters: N images, T terms, D embedding width.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse

MAX_ANSWER = 2_000  # characters of an answer that are read
MAX_WORDS = 4  # of a term
MAX_WORD = 40  # characters
MIN_IMAGES = 3  # of a term
MAX_TERMS = 20_000  # the most frequent ones
NEIGHBOURS = 10
QUERIES = 16_384  # images whose neighbours are searched, at most
ROWS = 256  # images that are compared with all at once
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


def phrases(answer: str) -> list[str]:
    """Return the names in an answer: in lower case, without articles and places."""
    names = []
    text = _MARKS.sub(" ", answer[:MAX_ANSWER]).lower()
    for part in _SEPARATORS.split(text):
        for piece in _REST.split(_without_opening(part)):
            words = [word for word in piece.split() if not _EMPTY.fullmatch(word)]
            if words:
                names.append(" ".join(word[:MAX_WORD] for word in words))
                break
    return names


def _without_opening(part: str) -> str:
    """Return a part of an answer without signs, and without words such as "this is a photo of"."""
    plain = part.replace("\u2019", "'").replace("'s ", " ")
    plain = re.sub(r"[^\w' ]+|_", " ", plain).replace("'", "")
    plain = " ".join(plain.split())
    return _OPENING.sub("", _SENTENCE.sub("", plain))


def terms_of(phrase: str) -> Iterator[str]:
    """Yield the terms of a name, the longest first."""
    words = phrase.split()
    for length in range(min(MAX_WORDS, len(words)), 0, -1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])


@dataclass(frozen=True)
class Names:
    """The terms of N images."""

    terms: list[str]  # the most frequent first
    has: scipy.sparse.csr_matrix  # [N, T] float32: 1 where an image has the term

    @property
    def images(self) -> Ints:
        """Return the number [T] of images that have each term."""
        return np.bincount(self.has.indices, minlength=len(self.terms))


def read_names(answers: Sequence[str]) -> Names:
    """Return the terms that at least MIN_IMAGES of the answers have, most frequent first."""
    terms_of_image = [
        {term for phrase in phrases(answer) for term in terms_of(phrase)}
        for answer in answers
    ]
    found = pd.Series(terms_of_image, dtype=object).explode().dropna()
    images = found.value_counts().sort_index()
    images = images.sort_values(ascending=False, kind="stable")
    terms = images.index[images >= MIN_IMAGES][:MAX_TERMS]
    columns = terms.get_indexer(pd.Index(found))
    entries = found.index[columns >= 0], columns[columns >= 0]
    shape = len(answers), len(terms)
    ones = np.ones(len(entries[0]), np.float32)
    has = scipy.sparse.csr_matrix((ones, entries), shape)
    return Names([*terms], has)


def predictability(features: Floats, names: Names) -> Floats:
    """Return how well features [N, D] predict each term [T], from 0 (chance) to 1.

    It is the share of the nearest images of a term's images that have the term as well.
    """
    n_images = len(features)
    images = names.images
    unit = normalised(features)
    queries = np.arange(0, n_images, -(-n_images // QUERIES))
    k = min(NEIGHBOURS, n_images - 1)
    # A term of few images can be found in as few of the neighbours.
    reach = np.minimum(images - 1, NEIGHBOURS)
    hits = np.zeros(len(images))
    asked = np.zeros(len(images))
    for start in range(0, len(queries), ROWS):
        rows = queries[start : start + ROWS]
        distances = -(unit[rows] @ unit.T)
        distances[np.arange(len(rows)), rows] = np.inf
        nearest = np.argpartition(distances, range(k), axis=1)
        terms = names.has[rows]
        asked += terms.sum(axis=0).A1
        for place in range(k):
            both = terms.multiply(names.has[nearest[:, place]])
            hits += both.sum(axis=0).A1 * (place < reach)
    share = hits / np.maximum(asked * reach, 1)
    chance = (images - 1) / (n_images - 1)
    beyond_chance = (share - chance) / np.maximum(1 - chance, TINY)
    return np.asarray(np.clip(beyond_chance, 0, 1), np.float32)


def normalised(features: Floats) -> Floats:
    """Return features [N, D] of length 1, or 0."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, TINY))


def unit_rows(table: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Return a table whose rows have length 1, or 0."""
    lengths = np.sqrt(table.power(2).sum(axis=1))
    return table.multiply(1 / np.maximum(lengths, TINY)).tocsr()

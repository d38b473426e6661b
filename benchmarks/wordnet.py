"""How names of classes relate to the true ones, by WordNet's nouns.

`data.noun` of WordNet's folder `dict` (https://wordnet.princeton.edu) has a set of synonyms on each
line: its offset, its words, and pointers to other sets, of which `@` and `@i` lead to hypernyms.
"""

from collections import defaultdict
from pathlib import Path

# What counts as a right name, and what does not.
RIGHT = ("the name", "a word more or less", "synonym", "neighbour")
WRONG = ("sister", "other")


class WordNet:
    """The sets of synonyms of nouns, with their hypernyms and hyponyms."""

    def __init__(self, path: Path) -> None:
        """Read `data.noun`."""
        self.sets = defaultdict[str, set[str]](set)  # by word
        self.above = defaultdict[str, set[str]](set)
        self.below = defaultdict[str, set[str]](set)
        for line in path.read_text("latin1").splitlines():
            if not line.startswith("  "):  # of the licence
                self._add(line.partition("|")[0].split())

    def _add(self, fields: list[str]) -> None:
        offset = fields[0]
        n_words = int(fields[3], 16)
        pointers = 5 + 2 * n_words
        for word in fields[4 : pointers - 1 : 2]:
            self.sets[plain(word)].add(offset)
        for start in range(pointers, pointers + 4 * int(fields[pointers - 1]), 4):
            if fields[start] in ("@", "@i"):
                other = fields[start + 1]
                self.above[offset].add(other)
                self.below[other].add(offset)

    def relation(self, name: str, truth: str) -> str:
        """Return one of RIGHT or WRONG."""
        first = plain(name)
        second = plain(truth)
        if first.replace(" ", "") == second.replace(" ", ""):
            return "the name"
        words = set(first.split())
        others = set(second.split())
        if words < others or others < words:
            return "a word more or less"
        own = self._meanings(first)
        wanted = self._meanings(second)
        if own & wanted:
            return "synonym"
        above = {one for each in own for one in self.above[each]}
        below = {one for each in own for one in self.below[each]}
        if (above | below) & wanted:
            return "neighbour"
        sisters = {one for each in above for one in self.below[each]}
        return "sister" if sisters & wanted else "other"

    def _meanings(self, name: str) -> set[str]:
        return self.sets.get(name) or self.sets.get(name.replace(" ", ""), set())


def plain(name: str) -> str:
    """Return a name in lower case, with spaces, in the singular."""
    return " ".join(
        word.removesuffix("s") for word in name.lower().replace("_", " ").split()
    )

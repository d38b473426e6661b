import numpy as np
import pytest

from latteclip.core.class_groups import ClassGroups, read_parents
from latteclip.core.errors import UserError
from latteclip.labels.guarantees import pac_threshold

CLASSES = ["poodle", "beagle", "tabby", "siamese", "ant", "bee", "rock"]
NESTED = {
    "animal": {"mammal": {"dog": ["poodle", "Beagle"], "cat": ["tabby", "siamese"]}},
    "insect": ["ant", "bee"],
}
FLAT = {
    "poodle": "dog",
    "Beagle": "dog",
    "tabby": "cat",
    "siamese": "cat",
    "dog": "mammal",
    "cat": "mammal",
    "mammal": "animal",
    "ant": "insect",
    "bee": "insect",
}


def path_of(groups, probabilities):
    nodes = groups.path(np.array(probabilities))
    return [(node.name, round(node.probability, 9)) for node in nodes]


@pytest.fixture
def csv_file(tmp_path):
    rows = "".join(f"{child},{parent}\r\n" for child, parent in FLAT.items())
    (tmp_path / "groups.csv").write_bytes(b"\xef\xbb\xbfclass,group\r\n" + rows.encode())
    return str(tmp_path / "groups.csv")


def test_lists_pairs_and_a_csv_file_are_the_same_groups(csv_file):
    assert read_parents(FLAT) == read_parents(NESTED) == read_parents(csv_file)


def test_the_finest_group_with_enough_probability_is_the_answer():
    groups = ClassGroups(read_parents(NESTED), CLASSES)
    shares = np.array([0.25, 0.25, 0.1, 0.0, 0.3, 0.0, 0.1])
    path = [("animal", 0.6), ("mammal", 0.6), ("dog", 0.5), ("poodle", 0.25)]
    assert path_of(groups, shares) == path
    answers = {0.2: "poodle", 0.3: "dog", 0.5: "dog", 0.55: "mammal"}
    for threshold, name in answers.items():
        assert groups.answer(shares, threshold).name == name
    assert groups.answer(shares, 0.7) is None
    surest = np.array([0, 0, 0, 0, 0, 0, 1.0])
    assert groups.answer(surest, 0.9).name == "rock"  # a class in no group


def test_without_groups_the_answer_is_the_best_class():
    groups = ClassGroups({}, CLASSES)
    shares = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES)))
    best = int(shares.argmax())
    assert path_of(groups, shares) == [(CLASSES[best], round(shares[best], 9))]


def test_a_group_is_wrong_from_the_first_that_lacks_the_class():
    groups = ClassGroups(read_parents(NESTED), CLASSES)
    shares = np.array([[0.25, 0.25, 0.1, 0.0, 0.3, 0.0, 0.1]] * 5)
    truth = [CLASSES.index(name) for name in ("poodle", "beagle", "tabby", "rock")]
    confidence, is_wrong = groups.mistakes(shares, [*truth, None])
    assert is_wrong.tolist() == [False, True, True, True, True]
    assert confidence[1:] == pytest.approx([0.25, 0.5, 0.6, 0.6])
    for row, label in enumerate([*truth, None]):
        for threshold in (0.1, 0.25, 0.4, 0.5, 0.55, 0.6, 0.9):
            node = groups.answer(shares[row], threshold)
            wrong = node is not None and label not in node.members
            assert wrong == (is_wrong[row] and confidence[row] >= threshold)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"a": "b", "b": "c", "c": "a"}, "a in b in c in a"),
        ({"a": "a"}, "a in a"),
        ({"poodle": "dog", "pet": ["poodle"]}, "poodle.*dog.*pet"),
        ({"dog": ["podle"]}, "podle.*poodle"),
        ({"dog": ["Poodle"], "cat": ["poodle"]}, "Poodle.*poodle"),
        ({"poodle": "dog", "beagle": "poodle"}, "poodle"),
        ({"dog": [""]}, "empty"),
        ({"dog": {"poodle": 3}}, r"dog\.poodle"),
    ],
)
def test_groups_that_are_no_tree_of_the_classes_are_refused(given, named):
    with pytest.raises(UserError, match=named):
        ClassGroups(read_parents(given), CLASSES)


@pytest.mark.parametrize("text", ["", "name,kind\na,b\n", "class,group\na\n", None])
def test_a_file_that_is_no_table_of_groups_is_one_sentence(tmp_path, text):
    path = tmp_path / "groups.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"groups\.csv"):
        read_parents(path)


def test_the_promise_holds_in_as_many_drawings_as_it_says():
    """Confidences are far too high; answers are rolled up to a planted tree of 27 classes."""
    n_classes = 27
    names = [f"c{number}" for number in range(n_classes)]
    parents = {name: f"g{number // 3}" for number, name in enumerate(names)}
    parents |= {f"g{number}": f"h{number // 3}" for number in range(n_classes // 3)}
    groups = ClassGroups(parents, names)
    rng = np.random.default_rng(0)
    n, most = 2000, 0.1
    truth = rng.integers(0, n_classes, n)
    # Mistakes mostly stay in the group, as those of classifiers do.
    group = np.where(rng.random(n) < 0.9, truth // 3, rng.integers(0, n_classes // 3, n))
    scores = rng.normal(0, 1, (n, n_classes))
    leaves = group[:, None] * 3 + np.arange(3)
    scores[np.arange(n)[:, None], leaves] += rng.exponential(4, (n, 1))
    scores[np.arange(n), truth] += 1
    shares = np.exp(2 * scores) / np.exp(2 * scores).sum(axis=1, keepdims=True)
    confidence, is_wrong = groups.mistakes(shares, truth.tolist())
    flat_confidence, flat_wrong = shares.max(axis=1), shares.argmax(axis=1) != truth
    kept, answered, flat_answered = [], [], []
    tops = np.array([next(groups.path(row)).probability for row in shares])
    for seed in range(200):
        drawn = np.random.default_rng(seed).permutation(n)[:100]
        rest = np.setdiff1d(np.arange(n), drawn)
        threshold = pac_threshold(confidence[drawn], is_wrong[drawn], most)
        kept.append((is_wrong & (confidence >= threshold))[rest].mean() <= most)
        answered.append((tops >= threshold)[rest].mean())
        flat = pac_threshold(flat_confidence[drawn], flat_wrong[drawn], most)
        flat_answered.append((flat_confidence >= flat)[rest].mean())
    # 95 % within three standard errors of 200 drawings.
    assert np.mean(kept) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(answered) > np.mean(flat_answered) + 0.1

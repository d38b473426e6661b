import re

import numpy as np
import pytest
from support.made_results import Results
from support.pages import write

from latteclip.core import tables


def write_duplicates(results, pairs):
    """DUPLICATES by the numbers of images."""
    columns = {
        "image_id": [results.image_ids[i] for i, _ in pairs],
        "twin_id": [results.image_ids[j] for _, j in pairs],
        "distance": [0.01 * n for n in range(len(pairs))],
    }
    path = results.folder / "duplicates.parquet"
    tables.write(path, columns, tables.DUPLICATES)
    return str(path)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("made"))


# Of 31 training images and 53 for testing: one pair of the first, two of the others, three between.
PAIRS = [(0, 5), (40, 41), (41, 42), (3, 50), (4, 50), (7, 60)]


def test_the_page_counts_pairs_and_shows_some(results):
    page, _ = write(results, duplicates=write_duplicates(results, PAIRS))
    said = re.findall(r"\d+", page.sections["images"])
    for number in "61232":  # pairs; within training, within testing, between; leaked images
        said = said[said.index(number) + 1 :]
    alts = [a["alt"] for tag, a in page.elements if tag == "img" and "near-duplicates" in a["alt"]]
    assert len(alts) == 12 and alts[0].endswith(results.image_ids[0])


def test_accuracies_without_leaked_test_images_equal_the_loop(results):
    page, _ = write(results, duplicates=write_duplicates(results, PAIRS))
    rows = page.tables["without-leaks"][1:]
    assert [row[0][0] for row in rows] == list(results.methods)
    for row in rows:
        runs = [run for run in results.runs if run.method == row[0][0]]
        accuracies = []
        for run in runs:
            table = tables.read(run.predictions, tables.PREDICTIONS)[0].to_pylist()
            kept = [
                one["prediction"] == one["label"]
                for one in table
                if one["image_id"] not in {results.image_ids[50], results.image_ids[60]}
            ]
            assert len(kept) == 51
            accuracies.append(100 * np.mean(kept))
        assert float(row[2][1]) == pytest.approx(np.mean(accuracies))
        assert float(row[3][1]) == pytest.approx(float(row[2][1]) - float(row[1][1]))


def test_without_labels_or_without_leaks_no_accuracy_is_compared(results, tmp_path):
    page, _ = write(results, duplicates=write_duplicates(results, PAIRS[:3]))
    assert "without-leaks" not in page.tables
    unlabelled = Results(tmp_path, labelled=False)
    page, _ = write(unlabelled, duplicates=write_duplicates(unlabelled, PAIRS))
    assert "without-leaks" not in page.tables
    page, _ = write(results, duplicates=write_duplicates(results, []))
    assert "images" not in page.sections

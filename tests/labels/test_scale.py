"""What is computed in pieces, for datasets of a million images, equals the whole."""

import importlib.util
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from support.tiny import ROOT, write_captions, write_index

from latteclip.captions import gather_captions
from latteclip.captions.mentions import mentions
from latteclip.captions.shard import shard_of
from latteclip.clip import ranking
from latteclip.core import tables
from latteclip.labels import fusion, pseudo_label_images
from latteclip.labels.features import read_features
from latteclip.train import texts

N, C, D, K = 23, 7, 5, 3


def generator(seed):
    return torch.Generator().manual_seed(seed)


def unit_vectors(n, seed):
    return F.normalize(torch.randn(n, D, generator=generator(seed)), dim=1)


# --- scores and features -------------------------------------------------------------------------


@pytest.mark.parametrize("values", [2, 5, 1000])
@pytest.mark.parametrize("k", [1, K, C, C + 2])
def test_the_best_classes_are_those_of_a_stable_sort_of_all(values, k):
    scores = torch.randint(values, (200, C), generator=generator(values)).float() / values
    wanted = scores.sort(dim=1, descending=True, stable=True)
    labels, best = ranking.best_classes(scores, k)
    assert torch.equal(labels, wanted.indices[:, :k])
    assert torch.equal(best, wanted.values[:, :k])


def test_images_are_classified_in_parts(monkeypatch):
    images, classifier = unit_vectors(N, 1), unit_vectors(C, 2)
    labels, best = ranking.best_classes(images @ classifier.T, K)
    monkeypatch.setattr(ranking, "ROWS", 4)
    in_parts = ranking.classify(images, classifier, K)
    assert torch.equal(in_parts[0], labels)
    torch.testing.assert_close(in_parts[1], best)


@pytest.fixture
def labelled(tmp_path):
    """Image_ids, their features, and a function that writes their pseudo-labels."""
    names = [f"{number}.png" for number in range(N)]
    images, embeddings = unit_vectors(N, 1), unit_vectors(C, 2)
    table = pa.table({"image_id": names, "split": ["train"] * N})

    def write(name):
        path = str(tmp_path / name)
        about = {"classnames": list("abcdefg")}
        pseudo_label_images.write_pseudo_labels(path, table, images, embeddings, 10.0, K, about)
        return path

    return names, images, write


def test_pseudo_labels_are_written_in_pieces(labelled, monkeypatch):
    _, _, write = labelled
    whole, metadata = tables.read(write("whole.parquet"), tables.PSEUDO_LABELS)
    monkeypatch.setattr(pseudo_label_images, "ROWS", 5)
    path = write("pieces.parquet")
    pieces, again = tables.read(path, tables.PSEUDO_LABELS)
    assert pq.ParquetFile(path).num_row_groups == 5
    assert again == metadata
    for column in ("image_id", "split", "pseudo_label", "topk_labels", "image_features"):
        assert pieces[column].to_pylist() == whole[column].to_pylist()
    assert pieces["confidence"].to_pylist() == pytest.approx(whole["confidence"].to_pylist())


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("wanted", [range(N), [20, 3, 4, 11, 0], [7, 7, 2], []])
def test_features_are_read_in_pieces_and_in_the_order_asked_for(
    labelled, monkeypatch, rows, wanted
):
    names, images, write = labelled
    monkeypatch.setattr(pseudo_label_images, "ROWS", 6)
    monkeypatch.setattr("latteclip.labels.features.ROWS", rows)
    ids = pa.chunked_array([[names[i] for i in wanted]], pa.string())
    assert torch.equal(read_features(write("t.parquet"), ids), images[list(wanted)])


# --- captions ------------------------------------------------------------------------------------


def test_shards_are_gathered_in_pieces(tmp_path, monkeypatch):
    names = [f"{number}.png" for number in range(N)]
    index = write_index(tmp_path / "images.parquet", names, ["train"] * N, [None] * N, ["a", "b"])
    paths = []
    for number in (1, 2, 3):
        own = [name for name in names if shard_of(name, 3) == number]
        paths.append(write_captions(tmp_path / f"{number}.parquet", own, [f"of {n}" for n in own]))
    monkeypatch.setattr(gather_captions, "ROWS", 2)
    monkeypatch.setattr(gather_captions, "_metadata", lambda _: {})
    gather_captions.gather_captions(index, paths, str(tmp_path / "all.parquet"))
    table, _ = tables.read(tmp_path / "all.parquet", tables.CAPTIONS, ["id", "caption"])
    assert table["id"].to_pylist() == names
    assert table["caption"].to_pylist() == [f"of {name}" for name in names]


def test_class_names_are_found_as_if_each_were_looked_for():
    draw = np.random.default_rng(0)
    letters = ["a", "b", "C", " ", ".", "-", "é", "("]

    def words(n, longest):
        return [
            "".join(draw.choice(letters, draw.integers(1, longest + 1))).strip() for _ in range(n)
        ]

    names = list(dict.fromkeys(filter(None, words(60, 6))))
    plain = [re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE) for name in names[5:]]
    names_a_class = mentions(names[5:])
    found = [(names_a_class(text), any(p.search(text) for p in plain)) for text in words(500, 9)]
    assert {one for one, _ in found} == {True, False}
    assert all(one == other for one, other in found)


def test_texts_are_tokenised_in_parts(demo_clip, monkeypatch):
    bank = texts.TextBank(demo_clip)
    every = [f"a striped texture, number {number}." for number in range(N)]
    bank.add(every)
    monkeypatch.setattr(texts, "ROWS", 4)
    assert torch.equal(bank.tokens, demo_clip.tokenizer(every).int())


# --- labels from captions ------------------------------------------------------------------------


@pytest.fixture
def votes():
    """Zero-shot scores, votes of captions and of groups, and labels: float64."""
    draw = generator(4)
    n, labels = 400, torch.randint(C, (400,), generator=draw)

    def scores(right, strength):
        wrong = torch.randint(C, (n,), generator=draw)
        named = torch.where(torch.rand(n, generator=draw) < right, labels, wrong)
        noise = torch.randn(n, C, generator=draw)
        return (noise + strength * F.one_hot(named, C)).double()

    zero_shot_scores, own, groups = scores(0.8, 3), scores(0.7, 6), scores(0.9, 6)
    return zero_shot_scores, own.softmax(1), groups.softmax(1), zero_shot_scores.argmax(1)


def test_fused_labels_of_float32_tables_are_those_of_float64(votes, monkeypatch):
    scores, own, groups, labels = votes
    whole = fusion.fuse(scores.log_softmax(1), own, groups, labels)
    monkeypatch.setattr(fusion, "ROWS", 33)
    small = [table.float() for table in (scores, own, groups)]
    fused = fusion.fuse(fusion.log_probabilities(small[0]), *small[1:], labels)
    assert fused.log_posterior.dtype == torch.float32
    assert whole.model is not None
    assert fused.group_rate > 0
    assert fused.group_rate == pytest.approx(whole.group_rate, rel=1e-3)
    assert fused.evidence == pytest.approx(whole.evidence, rel=1e-5)
    assert torch.equal(fused.log_posterior.argmax(1), whole.log_posterior.argmax(1))
    torch.testing.assert_close(
        fused.log_posterior.exp(), whole.log_posterior.exp().float(), rtol=1e-3, atol=1e-4
    )


def test_log_probabilities_take_the_place_of_scores(monkeypatch):
    monkeypatch.setattr(fusion, "ROWS", 4)
    scores = torch.randn(N, C, generator=generator(1))
    wanted = scores.log_softmax(1)
    assert fusion.log_probabilities(scores) is scores
    torch.testing.assert_close(scores, wanted)


# --- the benchmark -------------------------------------------------------------------------------


def test_every_step_of_the_benchmark_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
    place = scale.Place(tmp_path, 200, 5)
    for step in scale.STEPS:
        if step.run is not scale.plan_jobs:  # dry runs have tests of their own
            step.run(place)()
    results = place.checkout / "results" / "scale"
    captions = pq.read_table(results / "captions" / "images.parquet")
    index = pq.read_table(results / "images.parquet")
    assert len(index) == 200
    assert len(captions) == index["split"].to_pylist().count("train")
    assert (results / "report.html").is_file()

import json
import logging
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from support.tiny import DEMO_CLIP, write_captions, write_index

from latteclip.cli import main
from latteclip.clip import classifier, encode
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels import fusion
from latteclip.labels import label_by_captions as stage
from latteclip.labels.pseudo_label_images import class_embeddings, feature_column

N, C, G = 11, 5, 7


def generator(seed):
    return torch.Generator().manual_seed(seed)


def log_probabilities(n, c, seed):
    return (2 * torch.randn(n, c, generator=generator(seed)).double()).log_softmax(1)


def some_votes(n, c, seed, silent=(2,)):
    votes = log_probabilities(n, c, seed).exp()
    votes[list(silent)] = 0
    return votes


def some_model():
    draw = generator(3)
    return fusion.VoteModel(
        torch.tensor(0.4).double(),
        torch.randn(C, generator=draw).double(),
        torch.randn(C, generator=draw).double(),
        torch.randn(C, generator=draw).double().log_softmax(0),
    )


def in_loops(model, zero_shot, votes):
    """Log-likelihood and fused probabilities, from the formulas of the module's docstring."""
    temperature = math.exp(model.log_temperature)
    rates = [1 / (1 + math.exp(-logit)) for logit in model.rate_logits.tolist()]
    chances = [math.exp(x) for x in model.log_chances.tolist()]
    likelihood, fused = 0.0, []
    for scores, q in zip(zero_shot.tolist(), votes.tolist(), strict=True):
        powers = [
            math.exp(score / temperature + bias)
            for score, bias in zip(scores, model.biases.tolist(), strict=True)
        ]
        prior = [power / sum(powers) for power in powers]
        says = [  # [class][vote]
            [rates[c] * (k == c) + (1 - rates[c]) * chances[k] for k in range(C)] for c in range(C)
        ]
        for k in range(C):
            likelihood += q[k] * math.log(sum(prior[c] * says[c][k] for c in range(C)))
        joint = [prior[c] * math.prod(says[c][k] ** q[k] for k in range(C)) for c in range(C)]
        fused.append([value / sum(joint) for value in joint])
    return likelihood, torch.tensor(fused, dtype=torch.float64)


def test_the_model_equals_its_formulas_in_loops():
    model, zero_shot, votes = some_model(), log_probabilities(N, C, 1), some_votes(N, C, 2)
    likelihood, fused = in_loops(model, zero_shot, votes)
    assert model.log_likelihood(zero_shot, votes).item() == pytest.approx(likelihood)
    torch.testing.assert_close(model.log_posterior(zero_shot, votes).exp(), fused)


def test_a_caption_that_does_not_vote_changes_no_probability():
    model, zero_shot = some_model(), log_probabilities(N, C, 1)
    torch.testing.assert_close(
        model.log_posterior(zero_shot, torch.zeros(N, C).double()), model.log_prior(zero_shot)
    )


def test_a_vote_weighs_more_for_a_class_that_is_seldom_named_by_chance():
    chances = torch.tensor([0.7, 0.2, 0.1]).double()
    zeros = torch.zeros(3).double()
    model = fusion.VoteModel(zeros[0], zeros, zeros, chances.log())
    torch.testing.assert_close(model.weights(), (1 + 1 / chances).log())


def test_mean_group_votes_equal_the_loops():
    votes = some_votes(G, C, 4, silent=(1, 5))
    members = [[0, 3], [3, 4], [6], [0, 3, 8], [9], [10], [0]]  # of the silent 1: 3, 4; of 5: 10
    pairs = [(group, image) for group, images in enumerate(members) for image in images]
    groups, images = torch.tensor(pairs).T
    found = fusion.mean_group_votes(votes, groups, images, N)
    for image in range(N):
        voters = [g for g in range(G) if image in members[g] and g not in (1, 5)]
        for c in range(C):
            wanted = sum(votes[g, c].item() for g in voters) / max(1, len(voters))
            assert found[image, c].item() == pytest.approx(wanted)


def test_chances_of_labels_equal_the_loops():
    votes = some_votes(N, C, 5, silent=(0, 7))
    labels = torch.tensor([0, 1, 0, 3, 3, 1, 0, 4, 1, 0, 3])  # no image is labelled 2
    found = fusion.chances_of_labels(votes, labels)
    rows, total = votes.tolist(), N - 2
    overall = [(sum(row[k] for row in rows) + 1 / C) / (total + 1) for k in range(C)]
    for label in range(C):
        own = [row for row, of in zip(rows, labels.tolist(), strict=True) if of == label]
        n = sum(sum(row) for row in own)
        for k in range(C):
            wanted = (sum(row[k] for row in own) + overall[k]) / (n + 1)
            assert found[label, k].item() == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(4))
def test_the_rate_of_groups_is_the_best_of_a_grid(seed):
    posterior, votes = log_probabilities(N, C, seed).exp(), some_votes(N, C, 10 + seed)
    votes = (votes + 0.3 * posterior) * (votes.sum(1, keepdim=True) > 0)
    votes /= votes.sum(1, keepdim=True).clamp(min=1e-9)
    chances = log_probabilities(N, C, 20 + seed).exp()

    def gain(rate):
        return (votes * (rate * posterior + (1 - rate) * chances).log()).sum().item() - (
            votes * chances.log()
        ).sum().item()

    labels = torch.randperm(N, generator=generator(30 + seed))  # a row of chances for each image
    rate, evidence = fusion.fit_rate(posterior.log(), votes, labels, chances[labels.argsort()])
    assert 0 <= rate < 1
    assert evidence == pytest.approx(gain(rate))
    assert all(gain(x / 500) <= evidence + 1e-9 for x in range(500))


# Images whose class is known, so that accuracy can be told.

MANY = 1500


def images(n=MANY, c=6, *, seed=0, strength=2.0, sharpened=1.6):
    """Classes [n] and overconfident, biased zero-shot log-probabilities [n, c]."""
    draw = generator(seed)
    classes = torch.randint(c, (n,), generator=draw)
    scores = torch.randn(n, c, generator=draw).double()
    scores[torch.arange(n), classes] += strength
    biases = 0.7 * torch.randn(c, generator=draw).double()
    return classes, (sharpened * (scores + biases)).log_softmax(1)


def captions(classes, c=6, *, right, seed=0):
    """Votes [n, c] that name the class for a share of the images, else that of any image."""
    draw = generator(100 + seed)
    swapped = torch.rand(len(classes), generator=draw) >= right
    named = torch.where(swapped, classes[torch.randperm(len(classes), generator=draw)], classes)
    noise = torch.randn(len(classes), c, generator=draw).double()
    return (6 * F.one_hot(named, c) + noise).softmax(1)


def no_groups(votes):
    return torch.zeros_like(votes)


def fuse(zero_shot, votes, group_votes=None):
    labels = zero_shot.argmax(1)
    return fusion.fuse(
        zero_shot, votes, no_groups(votes) if group_votes is None else group_votes, labels
    )


def accuracy(scores, classes):
    return (scores.argmax(1) == classes).double().mean().item()


@pytest.mark.parametrize("right", [0.9, 0.6, 0.3])
def test_captions_that_are_sometimes_right_make_labels_better(right):
    classes, zero_shot = images()
    votes = captions(classes, right=right)
    fused = fuse(zero_shot, votes)
    best = max(accuracy(zero_shot, classes), accuracy(votes, classes))
    assert accuracy(fused.log_posterior, classes) > best + 0.02
    plain_sum = accuracy(zero_shot + votes.log(), classes)
    assert accuracy(fused.log_posterior, classes) > plain_sum


def test_temperature_and_rate_are_found():
    classes, zero_shot = images(n=4000, sharpened=3.0)
    for right in (0.8, 0.4):
        model = fuse(zero_shot, captions(classes, right=right)).model
        # Logits of a class drawn with unit noise are calibrated at `strength` times the noise.
        assert model.log_temperature.exp().item() == pytest.approx(3.0 / 2.0, rel=0.25)
        rates = model.rate_logits.sigmoid()
        assert rates.mean().item() == pytest.approx(right, abs=0.08)


def test_fused_confidence_says_how_many_labels_are_right():
    classes, zero_shot = images(n=4000, sharpened=3.0)
    posterior = fuse(zero_shot, captions(classes, right=0.6)).log_posterior
    assert posterior.exp().amax(1).mean().item() == pytest.approx(
        accuracy(posterior, classes), abs=0.05
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [60, MANY])
def test_captions_of_other_images_leave_the_zero_shot_labels(n, seed):
    classes, zero_shot = images(n, seed=seed)
    fused = fuse(zero_shot, captions(classes, right=0.0, seed=seed))
    assert fused.model is None
    assert fused.evidence <= fused.needed
    torch.testing.assert_close(fused.log_posterior, zero_shot)


@pytest.mark.parametrize("vote", [[0.2] * 5 + [0.0], [0, 1, 0, 0, 0, 0], [0.5, 0.3, 0.2, 0, 0, 0]])
def test_one_caption_for_all_images_leaves_the_zero_shot_labels(vote):
    _, zero_shot = images()
    votes = torch.tensor([vote], dtype=torch.float64).expand(MANY, -1)
    torch.testing.assert_close(fuse(zero_shot, votes).log_posterior, zero_shot)


def test_a_default_answer_does_not_draw_the_other_images_to_it():
    classes, zero_shot = images()
    votes = captions(classes, right=0.9)
    default = torch.rand(MANY, generator=generator(9)) < 0.5
    votes[default] = F.one_hot(torch.tensor(2), 6).double()
    fused = fuse(zero_shot, votes)
    assert accuracy(fused.log_posterior, classes) > accuracy(zero_shot, classes) + 0.05
    assert fused.model.weights()[2] < fused.model.weights()[[0, 1, 3, 4, 5]].min()


def test_a_class_that_captions_never_name_keeps_its_images():
    classes, zero_shot = images(strength=3.0)
    votes = captions(classes, right=1.0)
    never = classes == 4
    votes[never] = captions(torch.randint(4, (int(never.sum()),)), right=1.0, seed=1)
    assert int((votes.argmax(1) == 4).sum()) == 0
    posterior = fuse(zero_shot, votes).log_posterior
    assert accuracy(posterior[never], classes[never]) > 0.5
    assert accuracy(posterior, classes) > accuracy(zero_shot, classes)


def test_a_class_that_zero_shot_never_predicts_is_found_by_captions():
    classes, zero_shot = images()
    zero_shot[:, 3] -= 6
    kept = zero_shot.argmax(1) != 3
    classes, zero_shot = classes[kept], zero_shot[kept].log_softmax(1)
    posterior = fuse(zero_shot, captions(classes, right=0.95)).log_posterior
    assert int((posterior.argmax(1) == 3).sum()) > 50
    assert accuracy(posterior, classes) > accuracy(zero_shot, classes) + 0.1


def test_captions_that_repeat_the_zero_shot_labels_change_none():
    _, zero_shot = images()
    votes = captions(zero_shot.argmax(1), right=1.0)
    posterior = fuse(zero_shot, votes).log_posterior
    assert torch.equal(posterior.argmax(1), zero_shot.argmax(1))


def test_captions_that_name_the_classes_wrongly_but_consistently_are_not_believed():
    classes, zero_shot = images()
    alike = classes < 2  # images of two classes look like those of the next one, too
    zero_shot[alike, classes[alike] + 1] += 1.6
    zero_shot = zero_shot.log_softmax(1)
    votes = captions((classes + 1) % 6, right=1.0)
    torch.testing.assert_close(fuse(zero_shot, votes).log_posterior, zero_shot)


def test_the_order_of_images_changes_nothing():
    classes, zero_shot = images(600)
    votes = captions(classes, right=0.6)
    order = torch.randperm(600, generator=generator(5))
    there = fuse(zero_shot, votes).log_posterior
    back = fuse(zero_shot[order], votes[order]).log_posterior[order.argsort()]
    torch.testing.assert_close(back, there, rtol=1e-3, atol=1e-3)


def test_images_computed_in_parts_are_one_sum(monkeypatch):
    classes, zero_shot = images(100)
    votes = captions(classes, right=0.6)
    whole = fuse(zero_shot, votes)
    monkeypatch.setattr(fusion, "ROWS", 7)
    parts = fuse(zero_shot, votes)
    assert parts.evidence == pytest.approx(whole.evidence)
    torch.testing.assert_close(parts.log_posterior, whole.log_posterior, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [1, 3])
def test_a_handful_of_images_keeps_its_labels(n):
    zero_shot, votes = log_probabilities(n, 40, 1), some_votes(n, 40, 2, silent=())
    torch.testing.assert_close(fuse(zero_shot, votes, votes).log_posterior, zero_shot)


def test_one_class_is_the_label_of_all():
    fused = fuse(torch.zeros(9, 1).double(), torch.ones(9, 1).double(), torch.ones(9, 1).double())
    torch.testing.assert_close(fused.log_posterior, torch.zeros(9, 1).double())
    assert (fused.evidence, fused.group_evidence) == pytest.approx((0, 0), abs=1e-9)


def test_no_votes_at_all_leave_the_zero_shot_labels():
    zero_shot = log_probabilities(N, C, 1)
    nothing = torch.zeros(N, C).double()
    torch.testing.assert_close(fuse(zero_shot, nothing, nothing).log_posterior, zero_shot)


def test_groups_that_repeat_the_label_they_were_drawn_from_do_not_count():
    classes, zero_shot = images()
    votes = captions(classes, right=0.6)
    groups = captions(zero_shot.argmax(1), right=0.9, seed=7)
    fused = fuse(zero_shot, votes, groups)
    assert fused.group_rate == 0
    torch.testing.assert_close(fused.log_posterior, fuse(zero_shot, votes).log_posterior)


def test_groups_that_tell_images_of_a_label_apart_make_labels_better():
    classes, zero_shot = images()
    votes, groups = captions(classes, right=0.6), captions(classes, right=0.5, seed=7)
    fused = fuse(zero_shot, votes, groups)
    assert fused.group_rate > 0.1
    without = accuracy(fuse(zero_shot, votes).log_posterior, classes)
    assert accuracy(fused.log_posterior, classes) > without + 0.01


# The stage, on the demo's CLIP and made-up image features.

CLASSNAMES = ["striped", "dotted", "woven", "marbled", "grid", "cracked"]
TEMPLATE = "a photo of a {} texture."
SETTINGS = stage.CaptionLabelSettings(f"local-dir:{DEMO_CLIP}", None, batch_size=3)
IMAGES = 60


class Dataset:
    """Files of a dataset of which every fourth image is a test image without captions."""

    def __init__(self, folder, clip):
        self.folder, self.clip = folder, clip
        draw = generator(1)
        classes = torch.randint(6, (IMAGES,), generator=draw)
        self.embeddings = class_embeddings(clip, TEMPLATE, CLASSNAMES)  # [C, D]
        self.scale = clip.model.logit_scale.exp().item()
        noise = 0.5 * torch.randn(IMAGES, self.embeddings.shape[1], generator=draw)
        self.features = F.normalize(self.embeddings[classes] + noise, dim=1)
        self.labels = (self.features @ self.embeddings.T).argmax(1).tolist()
        self.names = [f"{number:03d}.png" for number in range(IMAGES)]
        self.splits = ["test" if number % 4 == 3 else "train" for number in range(IMAGES)]
        self.training = [number for number in range(IMAGES) if number % 4 != 3]
        self.captions = {
            self.names[i]: f"a {CLASSNAMES[(classes[i] + (i % 5 == 0)) % 6]} texture, number {i}."
            for i in self.training
        }
        self.groups = [[self.names[i]] * 4 for i in self.training[:20]]
        self.true_labels = classes.tolist()
        self.described = {
            "classnames": CLASSNAMES,
            "model": SETTINGS.model,
            "pretrained": None,
            "template": TEMPLATE,
            "logit_scale": self.scale,
        }

    def run(self, *, training=None, settings=SETTINGS):
        """The table written and its metadata."""
        path = self.folder
        index = write_index(
            path / "images.parquet", self.names, self.splits, self.true_labels, CLASSNAMES
        )
        n = len(self.names)
        tables.write(
            path / "pseudo_labels.parquet",
            {
                "image_id": self.names,
                "split": self.splits,
                "pseudo_label": pa.array(self.labels, pa.int32()),
                "confidence": pa.nulls(n, pa.float32()),
                "topk_labels": [[label] for label in self.labels],
                "topk_scores": [[0.5]] * n,
                "image_features": feature_column(self.features),
            },
            tables.PSEUDO_LABELS,
        )
        classifier.save_classifier(
            path / "class_embeddings.safetensors", self.embeddings, self.described
        )
        write_captions(path / "captions.parquet", list(self.captions), list(self.captions.values()))
        numbers = [str(number) for number in range(len(self.groups))]
        write_captions(
            path / "groups.parquet",
            numbers,
            ["all of them woven."] * len(numbers),
            members=self.groups,
        )
        stage.label_by_captions(
            index,
            str(path / "pseudo_labels.parquet"),
            str(path / "class_embeddings.safetensors"),
            str(path / "captions.parquet"),
            str(path / "groups.parquet"),
            settings,
            str(path / "out.parquet"),
            device="cpu",
            threads=1,
        )
        table, metadata = tables.read(path / "out.parquet", tables.CAPTION_LABELS)
        return table.to_pydict(), metadata


@pytest.fixture
def dataset(tmp_path, demo_clip):
    return Dataset(tmp_path, demo_clip)


@torch.no_grad()
def votes_one_by_one(dataset, texts):
    """Votes [T, C], each text encoded alone at full length."""
    clip = dataset.clip
    features = [F.normalize(clip.model.encode_text(clip.tokenizer([t]))[0], dim=0) for t in texts]
    scores = dataset.scale * torch.stack(features) @ dataset.embeddings.T
    return scores.double().softmax(1)


def test_captions_are_scored_like_images_one_by_one(dataset):
    columns, metadata = dataset.run()
    training = [dataset.names[i] for i in dataset.training]
    assert columns["image_id"] == training
    votes = votes_one_by_one(dataset, list(dataset.captions.values()))
    assert columns["caption_label"] == votes.argmax(1).tolist()
    assert columns["caption_confidence"] == pytest.approx(votes.amax(1).tolist(), abs=1e-4)
    own = [dataset.labels[i] for i in dataset.training]
    agreement = sum(a == b for a, b in zip(columns["caption_label"], own, strict=True)) / len(own)
    assert metadata["agreement"] == pytest.approx(agreement)


def test_the_table_is_the_fusion_of_the_votes(dataset):
    columns, metadata = dataset.run()
    zero_shot = dataset.scale * dataset.features[dataset.training] @ dataset.embeddings.T
    zero_shot = zero_shot.double().log_softmax(1)
    votes = votes_one_by_one(dataset, list(dataset.captions.values()))
    group_votes = torch.zeros_like(votes)
    group_votes[:20] = votes_one_by_one(dataset, ["all of them woven."])
    fused = fuse(zero_shot, votes, group_votes)
    assert fused.model is not None
    confidence, labels = fused.log_posterior.exp().max(1)
    assert columns["fused_label"] == labels.tolist()
    assert columns["fused_confidence"] == pytest.approx(confidence.tolist(), abs=1e-3)
    assert metadata["evidence"] == pytest.approx(fused.evidence, rel=1e-3)
    assert metadata["temperature"] == pytest.approx(
        fused.model.log_temperature.exp().item(), rel=1e-2
    )
    assert metadata["class_weights"] == pytest.approx(fused.model.weights().tolist(), rel=1e-2)
    assert metadata["changed"] == sum(
        a != b
        for a, b in zip(
            columns["fused_label"], [dataset.labels[i] for i in dataset.training], strict=True
        )
    )
    assert metadata["classnames"] == CLASSNAMES
    assert metadata["model"] == SETTINGS.model


def test_right_captions_make_more_labels_right(dataset):
    columns, _ = dataset.run()
    wanted = [dataset.true_labels[i] for i in dataset.training]
    before = [dataset.labels[i] for i in dataset.training]
    right = sum(a == b for a, b in zip(columns["fused_label"], wanted, strict=True))
    assert right > sum(a == b for a, b in zip(before, wanted, strict=True))


def test_a_group_label_is_that_of_the_groups_of_the_image(dataset):
    columns, _ = dataset.run()
    assert columns["group_label"] == [2] * 20 + [None] * (len(dataset.training) - 20)


def test_useless_captions_leave_the_zero_shot_labels(dataset, caplog):
    dataset.captions = dict.fromkeys(dataset.captions, "a photo of something.")
    with caplog.at_level(logging.INFO, "latteclip"):
        columns, metadata = dataset.run()
    assert columns["fused_label"] == [dataset.labels[i] for i in dataset.training]
    assert metadata["rate"] == metadata["group_rate"] == metadata["changed"] == 0
    assert "; 0 labels changed." in caplog.text


def test_an_empty_caption_votes_for_nothing(dataset):
    whole, _ = dataset.run()
    empty = [dataset.names[i] for i in dataset.training[:3]]
    dataset.captions |= dict(zip(empty, ["", "  ", None], strict=True))
    columns, metadata = dataset.run()
    assert columns["caption_label"][:3] == [dataset.labels[i] for i in dataset.training[:3]]
    assert columns["caption_label"][3:] == whole["caption_label"][3:]
    assert columns["caption_confidence"][:3] == [0, 0, 0]
    assert metadata["captions"] == len(dataset.training) - 3


def test_without_any_caption_the_zero_shot_labels_stay(dataset):
    dataset.captions = dict.fromkeys(dataset.captions, "")
    columns, metadata = dataset.run()
    own = [dataset.labels[i] for i in dataset.training]
    assert columns["fused_label"] == columns["caption_label"] == own
    assert (metadata["captions"], metadata["agreement"]) == (0, 0)


def test_a_caption_of_thousands_of_words_is_cut(dataset):
    name = dataset.names[dataset.training[0]]
    dataset.captions[name] = "a woven texture. " + "very " * 5000
    columns, _ = dataset.run()
    votes = votes_one_by_one(dataset, [dataset.captions[name]])
    assert columns["caption_label"][0] == votes.argmax().item()


def test_each_distinct_caption_is_encoded_once(dataset, monkeypatch):
    dataset.captions = dict.fromkeys(dataset.captions, " a dotted texture.")
    for number in range(7):
        dataset.captions[dataset.names[dataset.training[number]]] = f"text {number % 4}"
    batches = []

    def count(clip, tokens):
        batches.append(len(tokens))
        assert not torch.is_grad_enabled()
        return encode_texts(clip, tokens)

    encode_texts = encode.encode_texts
    monkeypatch.setattr(encode, "encode_texts", count)
    dataset.run()
    assert batches == [3, 3]  # four texts, the dotted one, and that of the groups


def test_captions_that_were_told_the_label_are_warned_of(dataset, caplog, monkeypatch):
    lookup = tables.lookup

    def told(path, schema, key, column, ids):
        values = lookup(path, schema, key, column, ids)
        return [f"Is it {i}?" for i in range(len(ids))] if column == "prompt" else values

    dataset.run()
    assert "pseudo-labels in the prompt" not in caplog.text
    monkeypatch.setattr(tables, "lookup", told)
    dataset.run()
    assert "pseudo-labels in the prompt" in caplog.text


def test_no_label_of_an_image_is_read(dataset):
    dataset.run()
    before = (dataset.folder / "out.parquet").read_bytes()
    dataset.true_labels = [None] * IMAGES
    dataset.run()
    assert (dataset.folder / "out.parquet").read_bytes() == before


def test_the_order_of_the_files_does_not_matter(dataset):
    there, _ = dataset.run()
    dataset.captions = dict(reversed(dataset.captions.items()))
    dataset.groups.reverse()
    back, _ = dataset.run()
    for column in ("image_id", "caption_label", "group_label", "fused_label"):
        assert back[column] == there[column]
    assert back["fused_confidence"] == pytest.approx(there["fused_confidence"], abs=1e-4)


def test_missing_captions_are_refused(dataset):
    first, second, *_ = dataset.captions
    del dataset.captions[first], dataset.captions[second]
    with pytest.raises(UserError, match=r"captions\.parquet lacks 2 of 45 images, the first '000"):
        dataset.run()
    assert not (dataset.folder / "out.parquet").exists()


def test_missing_image_features_are_refused(dataset, monkeypatch):
    read = tables.read

    def shortened(path, schema, columns=None):
        table, metadata = read(path, schema, columns)
        of_labels = Path(path).name == "pseudo_labels.parquet"
        return (table.slice(2) if of_labels else table), metadata

    monkeypatch.setattr(tables, "read", shortened)
    with pytest.raises(UserError, match=r"pseudo_labels\.parquet lacks 2 of 45 images"):
        dataset.run()


def test_a_group_with_a_test_image_is_refused(dataset):
    dataset.groups[3][1] = dataset.names[3]
    with pytest.raises(UserError, match=r"groups\.parquet names the image '003\.png'"):
        dataset.run()


@pytest.mark.parametrize(
    ("key", "value"), [("classnames", ["x", *CLASSNAMES[1:]]), ("model", "other")]
)
def test_class_embeddings_of_something_else_are_refused(dataset, key, value):
    dataset.described[key] = value
    with pytest.raises(UserError, match="of other classes or another CLIP"):
        dataset.run()


def test_a_dataset_without_training_images_is_refused(dataset):
    dataset.splits = ["test"] * IMAGES
    with pytest.raises(UserError, match="no training image"):
        dataset.run()


def test_the_command_hands_over(dataset):
    columns, _ = dataset.run()
    folder = dataset.folder
    settings = {"model": SETTINGS.model, "pretrained": None, "batch_size": 3, "precision": "bf16"}
    files = {
        "images": "images",
        "pseudo-labels": "pseudo_labels",
        "image-captions": "captions",
        "group-captions": "groups",
        "output": "again",
    }
    options = [x for key, name in files.items() for x in (f"--{key}", f"{folder / name}.parquet")]
    options += ["--class-embeddings", str(folder / "class_embeddings.safetensors")]
    options += ["--settings", json.dumps(settings), "--device", "cpu", "--threads", "1"]
    assert main.main(["label-by-captions", *options]) == 0
    assert pq.read_table(folder / "again.parquet").to_pydict() == columns
    assert Path(folder / "again.parquet").read_bytes() == (folder / "out.parquet").read_bytes()

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from support.tiny import DEMO_CLIP, write_captions, write_class_scores
from support.worlds import World
from support.zero_shot_files import ZeroShotFiles

from latteclip.clip import classifier, encode
from latteclip.clip import model as clips
from latteclip.clip.encode import class_embeddings
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import holdout, tables
from latteclip.core.metadata import (
    ClassesMetadata,
    EncoderMetadata,
    VoterLabelsMetadata,
    VotesMetadata,
)
from latteclip.labels import fuse_labels as stage
from latteclip.labels import fusion
from latteclip.labels.adaptation import adapt, unbiased_votes
from latteclip.labels.answers import Answer
from latteclip.labels.fusion_report import Weights, read_fusion_report
from latteclip.labels.label_sources import (
    ClipFeatures,
    caption_votes,
    class_score_votes,
    whiten,
)
from latteclip.labels.own_votes import VoterTableMetadata
from latteclip.labels.voters.base import VoterTable

CLASSNAMES = ["striped", "dotted", "woven", "marbled", "grid", "cracked"]
TEMPLATE = "a photo of a {} texture."
SETTINGS = stage.FusionSettings(
    clip=ClipSection(model=f"local-dir:{DEMO_CLIP}", pretrained=None),
    inference=InferenceSection(batch_size=3),
)
IMAGES = 160
C, K = 6, 4
OUTPUTS = ("out.parquet", "out.json", "classifier", "votes.parquet", "voters.parquet")


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Dataset(ZeroShotFiles):
    """Files of a dataset of which every fourth image is a test image without captions."""

    def __init__(self, folder, clip):
        draw = generator(1)
        classes = torch.randint(C, (IMAGES,), generator=draw)
        self.embeddings = class_embeddings(clip, [TEMPLATE], CLASSNAMES)  # [C, D]
        noise = 0.3 * torch.randn(IMAGES, self.embeddings.shape[1], generator=draw)
        features = F.normalize(self.embeddings[classes] + noise, dim=1)
        super().__init__(folder, World(classes, features, self.embeddings))
        self.clip, self.scale = clip, clip.model.logit_scale.exp().item()
        self.captioned = [self.names[i] for i in self.training]
        self.captions = {
            self.names[
                i
            ]: f"a {CLASSNAMES[(classes[i] + (i % 5 == 0)) % C]} texture, no. {i}."
            for i in self.training
        }
        # The true class is among the options, and is the likeliest one for most images.
        self.options = torch.stack(
            [(classes[i] + torch.arange(K)) % C for i in self.training]
        )
        self.scores = torch.randn(len(self.training), K, generator=draw)  # [N, K]
        self.scores[:, 0] += 2
        self.classnames = CLASSNAMES
        self.described = {
            "classnames": CLASSNAMES,
            "model": SETTINGS.clip.model,
            "pretrained": None,
            "template": TEMPLATE,
            "logit_scale": self.scale,
        }

    def write(self):
        captions, scores = self.path("captions.parquet"), self.path("class_scores.parquet")
        write_captions(captions, list(self.captions), list(self.captions.values()))
        lists = [
            [row[own].tolist() for row, own in zip(table, self.options >= 0, strict=True)]
            for table in (self.options, self.scores)
        ]
        return (
            *super().write(),
            captions,
            write_class_scores(scores, self.captioned, *lists),
        )

    def run(
        self,
        *,
        scores=False,
        voters=(),
        settings=SETTINGS,
        answers=None,
        **image_encoders,
    ):
        """The table and the report that are written."""
        *files, texts, class_scores = self.write()
        by_scores = VoterTable("lmm", "likelihood", "lmm", class_scores, "lmm")
        by_captions = VoterTable("caption", "captions", "caption", texts, "caption")
        outputs = [self.path(name) for name in OUTPUTS]
        stage.fuse_labels(
            *files,
            settings,
            *outputs,
            voters_files=voters or [by_scores if scores else by_captions],
            answers_path=answers,
            **image_encoders,
            device="cpu",
            threads=1,
        )
        table = tables.read(outputs[0], tables.FUSED_LABELS)
        assert tables.read_metadata(outputs[0], ClassesMetadata).classnames == CLASSNAMES
        return table.to_pydict(), read_fusion_report(outputs[1])

    def caption_votes(self):
        texts = encode_one_by_one(self, self.captions.values())
        texts = torch.cat([texts, torch.zeros(1, texts.shape[1])])
        return caption_votes(texts, torch.arange(120), self.embeddings, self.scale)

    def votes(self):
        """The table VOTES of the last run and its metadata."""
        path = self.path("votes.parquet")
        return tables.read(path, tables.VOTES), tables.read_metadata(path, VotesMetadata)

    def images(self):
        features = self.world.features[self.training]
        return adapt(ClipFeatures.of(features, self.embeddings, self.scale))

    def adapted(self):
        images = self.images()
        return images.adapted.logits(images.centred.double()).argmax(1).tolist()

    def right(self, labels):
        wanted = self.world.classes[self.training].tolist()
        return sum(a == b for a, b in zip(labels, wanted, strict=True)) / len(wanted)


@pytest.fixture
def dataset(tmp_path, demo_clip):
    return Dataset(tmp_path, demo_clip)


@torch.no_grad()
def encode_one_by_one(dataset, texts):
    """Features [T, D], each text encoded alone at full length."""
    clip = dataset.clip
    features = [
        F.normalize(clip.model.encode_text(clip.tokenizer([t]))[0], dim=0) for t in texts
    ]
    return torch.stack(features)


def assert_is_fusion(dataset, columns, report, votes):
    """The table, the report and the classifier are what `fuse` makes of the votes."""
    images = dataset.images()
    fused = fusion.fuse(images, votes)
    found, test = fused.parameters, fused.parameters.test
    assert columns["fused_label"] == fused.labels.tolist()
    assert columns["fused_confidence"] == pytest.approx(fused.confidence.tolist(), abs=1e-3)
    assert columns["image_label"] == fused.individual_labels["images"].tolist()
    assert asdict(report.gains) == pytest.approx(fused.gains, rel=1e-3)
    weights = {
        "zero_shot": found.zero_shot,
        "images": found.images[0],
        "texts": found.texts,
    }
    assert asdict(report.weights) == pytest.approx(weights, rel=1e-2, abs=1e-3)
    statistics = {"images": test.images, "zero_shot": test.zero_shot, "p_value": 0.001}
    assert report.corroborated is test.significant is True
    assert asdict(report.corroboration) == pytest.approx(statistics, rel=1e-3)
    head, described = classifier.load_classifier(dataset.folder / "classifier")
    features = dataset.world.features[dataset.training]
    wanted = images.classifier(fused.head, dataset.scale).scores(features)
    torch.testing.assert_close(head.scores(features), wanted, atol=1e-3, rtol=1e-3)
    assert described == dataset.described


# --- captions ------------------------------------------------------------------------------------


def test_captions_are_scored_like_images_and_fused(dataset):
    columns, report = dataset.run()
    assert columns["image_id"] == [dataset.names[i] for i in dataset.training]
    texts = encode_one_by_one(dataset, dataset.captions.values())
    votes = (dataset.scale * texts @ dataset.embeddings.T).double().softmax(1)
    assert columns["caption_label"] == votes.argmax(1).tolist()
    assert columns["caption_confidence"] == pytest.approx(votes.amax(1).tolist(), abs=1e-4)
    assert columns["lmm_label"] == columns["lmm_confidence"] == [None] * 120
    assert columns["adapted_label"] == dataset.adapted()
    pairs = list(zip(columns["caption_label"], columns["adapted_label"], strict=True))
    assert report.agreement == pytest.approx(sum(a == b for a, b in pairs) / 120)
    assert (report.votes, report.voting) == ("captions", 120)
    assert_is_fusion(dataset, columns, report, dataset.caption_votes())
    pairs = zip(columns["fused_label"], columns["adapted_label"], strict=True)
    assert report.changed == sum(a != b for a, b in pairs) > 0
    assert (report.model, report.classnames) == (SETTINGS.clip.model, CLASSNAMES)
    assert dataset.right(columns["fused_label"]) > dataset.right(dataset.adapted())


def test_useless_captions_leave_the_adapted_labels(dataset):
    dataset.captions = dict.fromkeys(dataset.captions, "a photo of something.")
    columns, report = dataset.run()
    assert columns["fused_label"] == columns["adapted_label"] == dataset.adapted()
    assert columns["image_label"] == [None] * 120
    assert report.corroborated is False
    assert (report.explained_share, report.changed, report.gains) == (0, 0, None)
    assert report.weights == Weights(zero_shot=1, images=0, texts=0)


def test_an_empty_caption_votes_for_nothing(dataset):
    whole, _ = dataset.run()
    empty = [dataset.names[i] for i in dataset.training[:3]]
    dataset.captions |= dict(zip(empty, ["", "  ", None], strict=True))
    columns, report = dataset.run()
    assert columns["caption_label"][:3] == dataset.adapted()[:3]
    assert columns["caption_label"][3:] == whole["caption_label"][3:]
    assert columns["caption_confidence"][:3] == [0, 0, 0]
    assert report.voting == 117


def test_each_distinct_caption_is_encoded_once(dataset, monkeypatch):
    dataset.captions = dict.fromkeys(dataset.captions, " a dotted texture.")
    dataset.captions |= {
        name: f"text {i % 4}" for i, name in enumerate(dataset.captioned[:7])
    }
    batches, encode_texts = [], encode.encode_texts

    def count(clip, tokens):
        batches.append(len(tokens))
        assert not torch.is_grad_enabled()
        return encode_texts(clip, tokens)

    monkeypatch.setattr(encode, "encode_texts", count)
    dataset.run()
    assert batches == [3, 2]  # four texts and the dotted one


# --- several voters ------------------------------------------------------------------------------


def test_several_voters_label_together_and_each_keeps_its_labels(dataset):
    by_captions, _ = dataset.run()
    by_scores, _ = dataset.run(scores=True)
    scores = dataset.path("class_scores.parquet")
    silent = [dataset.names[i] for i in dataset.training[:40]]
    options = [[] if name in silent else [0] for name in dataset.captioned]
    noise = [[] if name in silent else [0.0] for name in dataset.captioned]
    write_class_scores(dataset.path("noise.parquet"), dataset.captioned, options, noise)
    metadata = VoterTableMetadata(CLASSNAMES, "always striped", "file", "mine.csv")
    table = tables.read(dataset.path("noise.parquet"), tables.CLASS_SCORES)
    tables.write(dataset.path("noise.parquet"), table, tables.CLASS_SCORES, metadata)
    voters = [
        VoterTable(
            "words", "captions", "caption", dataset.path("captions.parquet"), "caption"
        ),
        VoterTable("letters", "likelihood", "lmm", scores, "lmm"),
        VoterTable("always striped", "file", "file", dataset.path("noise.parquet")),
    ]
    columns, report = dataset.run(voters=voters)
    for name, alone in (("caption", by_captions), ("lmm", by_scores)):
        assert columns[f"{name}_label"] == alone[f"{name}_label"]
        assert columns[f"{name}_confidence"] == alone[f"{name}_confidence"]
        assert dataset.right(columns["fused_label"]) >= dataset.right(alone["fused_label"])
    assert columns["fused_label"] != by_captions["fused_label"]

    labels = tables.read(dataset.path("voters.parquet"), tables.VOTER_LABELS)
    described = tables.read_metadata(dataset.path("voters.parquet"), VoterLabelsMetadata)
    assert described.voters == ["words", "letters", "always striped"]
    wanted = [-1 if name in silent else 0 for name in dataset.captioned]
    each = zip(columns["lmm_label"], wanted, strict=True)
    assert [row[1:] for row in labels["labels"].to_pylist()] == [list(row) for row in each]

    words, letters, useless = report.voters
    assert (report.votes, report.voting) == ("votes of 3 voters", 120)
    assert (words.table, letters.votes, useless.votes) == ("captions.parquet", 120, 80)
    assert words.family != letters.family
    assert 0 < words.weight <= 1
    assert words.gain > 0
    assert useless.weight is useless.family is None
    assert useless.gain == 0
    assert not useless.estimate.tells
    assert report.zero_shot is not None

    votes, metadata = dataset.votes()
    judges = votes["image_id"].to_pylist()
    assert metadata.votes == "votes of 3 voters"
    by_votes = np.array(votes["vote"].to_pylist()).argmax(axis=1)
    rows = [dataset.captioned.index(name) for name in judges]
    true = dataset.world.classes[dataset.training].numpy()[rows]
    assert (by_votes == true).mean() >= (
        np.array(columns["lmm_label"])[rows] == true
    ).mean()


def test_a_voter_twice_labels_as_it_does_once(dataset):
    alone, _ = dataset.run(scores=True)
    path = dataset.path("class_scores.parquet")
    pair = [VoterTable(name, "likelihood", "lmm", path) for name in ("one", "two")]
    columns, report = dataset.run(voters=pair)
    assert [one.weight for one in report.voters] == [1, None]
    assert report.uncounted == ["two"]
    assert columns["lmm_label"] == [None] * 120
    assert columns["fused_label"] == alone["fused_label"]
    assert columns["fused_confidence"] == alone["fused_confidence"]


# --- class scores --------------------------------------------------------------------------------


def test_class_scores_alone_vote_without_a_model(dataset, monkeypatch):
    monkeypatch.setattr(clips, "load", lambda *_: 1 / 0)
    columns, report = dataset.run(scores=True)
    votes = class_score_votes(dataset.options, dataset.scores, C)
    assert_is_fusion(dataset, columns, report, votes)
    best = votes.probabilities(slice(None)).max(dim=1)
    assert columns["lmm_label"] == best.indices.tolist()
    assert columns["lmm_confidence"] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert columns["caption_label"] == columns["caption_confidence"] == [None] * 120
    assert (report.votes, report.voting) == ("class scores", 120)
    assert dataset.right(columns["fused_label"]) > dataset.right(dataset.adapted())


def test_an_image_without_options_has_no_vote(dataset):
    dataset.options[:5] = -1
    dataset.options[5, 2:] = -1
    columns, report = dataset.run(scores=True)
    assert columns["lmm_label"][:5] == dataset.adapted()[:5]
    assert columns["lmm_confidence"][:5] == [0] * 5
    assert columns["lmm_label"][5] in dataset.options[5, :2].tolist()
    assert report.voting == 115
    assert None not in columns["fused_label"]
    table, described = dataset.votes()
    voting = list(range(5, 120))
    assert table["image_id"].to_pylist() == [dataset.captioned[i] for i in voting]
    images = dataset.images()
    votes = unbiased_votes(images, dataset.options, dataset.scores)
    parameters = fusion.fuse(images, votes).parameters
    wanted = parameters.classes(votes.probabilities(voting)).float()
    torch.testing.assert_close(torch.tensor(table["vote"].to_pylist()), wanted)
    assert (described.votes, described.corroborated) == ("class scores", True)
    assert described.leaked is False


# --- files ---------------------------------------------------------------------------------------


def test_no_label_of_an_image_and_no_test_image_has_a_part_in_it(dataset):
    dataset.run()
    before = dataset.written(*OUTPUTS)
    dataset.labels = [None] * IMAGES
    test = [i for i in range(IMAGES) if i % 4 == 3]
    dataset.world.features[test] = dataset.world.features[test].roll(1, dims=1)
    dataset.captions |= {dataset.names[i]: "a grid." for i in test}
    dataset.run()
    assert dataset.written(*OUTPUTS) == before


# --- image encoders beside CLIP ------------------------------------------------------------------


def test_features_of_other_models_are_fused(dataset, demo_clip):
    other = dataset.world.other_model().centred
    path, prototypes = dataset.path("encoder.parquet"), dataset.path("image_encoders")
    ids = dataset.names[::-1]
    columns = {"image_id": ids, "image_features": tables.list_column(other.flip(0).numpy())}
    tables.write(path, columns, tables.IMAGE_FEATURES, EncoderMetadata("an encoder", 16))
    alone, _ = dataset.run()
    table, report = dataset.run(
        image_encoders_paths=[path], encoders_prototypes_output=prototypes
    )
    training = dataset.training
    fused = fusion.fuse(
        dataset.images(), dataset.caption_votes(), [whiten(other[training].clone())]
    )
    assert table["fused_label"] == fused.labels.tolist()
    assert dataset.right(table["fused_label"]) >= dataset.right(alone["fused_label"])
    [encoder] = report.image_encoders
    assert (encoder.model, encoder.p_value) == ("an encoder", 0.001)
    assert encoder.weight == pytest.approx(fused.parameters.images[1], rel=1e-2)
    assert encoder.gain == pytest.approx(fused.gains["encoder_0"], rel=1e-2)
    votes = tables.read(dataset.path("votes.parquet"), tables.VOTES_ENCODERS)
    assert votes["joint_head"].to_pylist() == fused.joint_predicted.tolist()
    joint, described = classifier.load_classifier(prototypes)
    assert described["image_encoders"] == ["an encoder"]
    both = torch.cat([dataset.world.features, other], dim=1)[training]
    found = joint.scores(both).argmax(1)
    assert (found == fused.joint_predicted).double().mean() > 0.9
    assert joint.weights.shape == (C, dataset.embeddings.shape[1] + 16)


# --- votes, by which classifiers are compared ----------------------------------------------------


def test_of_very_many_images_some_judge(dataset, monkeypatch):
    monkeypatch.setattr(holdout, "MAX_HELD_OUT", 50)
    dataset.run()
    ids = dataset.captioned
    wanted = [ids[i] for i in holdout.held_out_for_choice(ids).nonzero()[0]]
    assert len(wanted) == 50
    assert dataset.votes()[0]["image_id"].to_pylist() == wanted


def test_captions_by_prompts_with_labels_are_marked(dataset, caplog, monkeypatch):
    lookup = tables.lookup_column

    def by_label(path, schema, key, column, ids):
        prompts = pa.chunked_array([[f"Is it {i}?" for i in range(len(ids))]])
        return prompts if column == "prompt" else lookup(path, schema, key, column, ids)

    dataset.run()
    assert not dataset.votes()[1].leaked
    monkeypatch.setattr(tables, "lookup_column", by_label)
    dataset.run()
    assert dataset.votes()[1].leaked
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


# --- answers -------------------------------------------------------------------------------------


def test_labels_follow_answers_and_are_checked_by_them(dataset, caplog):
    gone, none = (
        Answer("gone.png", "none", content="0" * 32),
        dataset.names[dataset.training[50]],
    )
    rows = dataset.training[:40]
    path = dataset.write_answers(rows, gone, Answer(none, "none"), drawn=rows[30:])
    columns, report = dataset.run(answers=path)
    assert columns["fused_label"][:40] == dataset.world.classes[rows].tolist()
    assert columns["fused_confidence"][:40] == [1.0] * 40
    assert columns["fused_confidence"][50] == 0
    assert "gone.png" in caplog.text
    answers = report.answers
    assert len(answers.images) == 41 and answers.images[none] is None
    checked = answers.checked
    assert checked.image_id == answers.checking == dataset.captioned[30:40]
    assert (checked.answers, answers.n_teaching) == (10, 31)
    assert checked.low <= checked.value <= checked.high
    # Of n labels, the 41 answered ones are right, and the others as often as those checked.
    n = len(columns["fused_label"])
    share = sum(checked.labels.right) / 10
    assert checked.value == pytest.approx((41 + share * (n - 41)) / n)
    assert len(checked.classifiers["image_prototypes"].right) == 10


@pytest.mark.parametrize("classname", [CLASSNAMES[0], None])
def test_answers_that_all_say_one_class_or_none_are_labels_like_others(dataset, classname):
    """No class but one has an answer then, or none has, and no label is right by them."""
    names = [dataset.names[row] for row in dataset.training[:40]]
    kind = "none" if classname is None else "class"
    answers = [Answer(name, kind, classname, phase="check") for name in names[20:]]
    answers += [Answer(name, kind, classname, phase="teach") for name in names[:20]]
    columns, report = dataset.run(answers=dataset.write_answers([], *answers))
    if classname:
        assert columns["fused_label"][:40] == [0] * 40
    else:
        assert columns["fused_confidence"][:40] == [0] * 40
    checked = report.answers.checked
    assert 0 <= checked.low <= checked.value <= checked.high <= 1
    others = dataset.right(columns["fused_label"])
    assert len(set(columns["fused_label"])) == C and others > 1 / C


def test_answers_that_are_empty_change_no_byte(dataset):
    before = dataset.run() and dataset.written(*OUTPUTS)
    answers = dataset.write_answers([])
    assert dataset.run(answers=answers) and dataset.written(*OUTPUTS) == before

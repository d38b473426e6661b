"""Votes by the zero-shot scores of another CLIP model."""

from latteclip.clip.classifier import ROWS, best_classes, parts
from latteclip.core import tables
from latteclip.labels.class_scores import read_class_scores
from latteclip.labels.label_sources import option_votes
from latteclip.labels.own_votes import VoterTableMetadata, VotesSettings, columns_of
from latteclip.labels.voters.base import Ballot, VotedImages
from latteclip.labels.zero_shot import encode_zero_shot


def vote(path: str, voted: VotedImages) -> Ballot:
    """Return votes by the probabilities of the best classes of each image."""
    described = tables.read_metadata(path, VoterTableMetadata)
    options, scores = read_class_scores(path, voted.image_ids)
    votes = option_votes(options, scores, len(voted.classes))
    return Ballot(described.voter, votes, options[:, 0], scores[:, 0].exp())


def write(
    images_path: str, settings: VotesSettings, output: str, *, device: str, threads: int
) -> None:
    """Write the log-probabilities of the best classes of images that are not in the test split."""
    assert settings.zero_shot is not None
    index, classnames = tables.read_unlabelled(images_path, training=True)
    paths = index["path"].to_pylist()
    zero_shot = settings.zero_shot
    encoded = encode_zero_shot(
        images_path, paths, zero_shot, device=device, threads=threads
    )
    described = VoterTableMetadata(
        classnames, str(settings.name), str(settings.kind), zero_shot.clip.model
    )
    with tables.writing(output, tables.CLASS_SCORES, described) as add:
        for some in parts(len(paths), ROWS):
            cosines = encoded.features[some] @ encoded.embeddings.T
            scores = (encoded.scale * cosines).log_softmax(dim=1)  # [rows, C]
            classes, best = best_classes(scores, zero_shot.inference.topk)
            ids = index["image_id"].slice(some.start, len(classes))
            add(columns_of(ids, classes.tolist(), best.tolist()))

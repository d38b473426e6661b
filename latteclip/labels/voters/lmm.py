"""Votes by the captioner's scores of classes."""

from latteclip.labels.adaptation import unbiased_votes
from latteclip.labels.class_scores import read_class_scores
from latteclip.labels.voters.base import Ballot, VotedImages


def vote(path: str, voted: VotedImages) -> Ballot:
    """Return the votes of a CLASS_SCORES table."""
    options, scores = read_class_scores(path, voted.image_ids)
    return Ballot.of("class scores", unbiased_votes(voted.images, options, scores))

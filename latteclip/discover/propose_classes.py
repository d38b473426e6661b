"""Propose the classes of images that have no class names, by their names and features."""

from latteclip.config.keys import AUTO, DiscoverSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.discover.grouping import MIN_IMAGES, Evidence
from latteclip.discover.names import read_names
from latteclip.discover.proposal import propose, write_proposal
from latteclip.labels.features import read_features
from latteclip.labels.image_classes import Whitener


def propose_classes(
    images_path: str,
    names_path: str,
    features_path: str,
    settings: DiscoverSection,
    output: str,
) -> None:
    """Write PROPOSED: the class of each image, and the names of each class.

    UserError: the answers of the captioner name fewer than two classes.
    """
    index, _ = tables.read_unlabelled(images_path, training=True)
    ids = index["image_id"]
    column = tables.lookup_column(names_path, tables.CAPTIONS, "id", "caption", ids)
    answers = [text or "" for text in column.to_pylist()]
    if not any(text.strip() for text in answers):
        raise UserError(
            f"{names_path} has no answer about any image; see its column error, or set "
            "captioner.engine to an engine that can name what an image shows."
        )
    features = read_features(features_path, ids, tables.IMAGE_FEATURES)[:].numpy()
    evidence = Evidence.of(Whitener(features)(features), read_names(answers))
    wanted = None if settings.classes == AUTO else settings.classes
    proposal = propose(ids.to_pylist(), evidence, wanted)
    if len(proposal.about.names) < 2:
        raise UserError(
            f"The {len(ids)} images have fewer than two classes by their names ({names_path}): at "
            f"least {MIN_IMAGES} images must share a name that the others lack. Write the names of "
            "the classes into classes.txt in the folder of the images, or change discover.prompt."
        )
    write_proposal(proposal, output)

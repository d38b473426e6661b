"""Labels that captions and zero-shot scores give together: ours, one step beyond the paper.

A caption is scored like an image, by the cosines of its text feature with the class embeddings W0;
its softmax is its vote q over the classes. How far votes can be trusted is learned from how they
agree with the zero-shot scores, without any label (in the spirit of Dawid and Skene 1979, where one
of two raters gives probabilities):

    p(c | image)   = softmax_c(log zero_shot(c) / temperature + bias_c)
    P(vote k | c)  = rate_c [k = c] + (1 - rate_c) chance_k
    fused(c)      ~= p(c | image) * prod_k P(vote k | c) ^ q_k

In words: the caption of an image of class c names c with probability rate_c, else any class k with
probability chance_k, whatever the image shows. Temperature, biases, rates and chances maximise the
likelihood of all votes, under normal priors that keep them at no correction where votes are few.

Letters: N training images, C classes, D embedding width, T texts, G groups, M memberships of
images in groups.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from latteclip import classifiers, devices, tables
from latteclip import clip as clips
from latteclip.errors import UserError
from latteclip.progress import Progress

log = logging.getLogger(__name__)
DEVIATION = 0.5  # of every correction, in logits: the priors
SMOOTHING = 1.0  # votes of the overall distribution added to each counted one
ROWS = 4096  # images whose likelihood is computed at once
STEPS = 200  # of L-BFGS at most; it needs about 30
HALVINGS = 50  # of the interval in which a group's rate is searched
HOW = (
    "Maximum likelihood of the caption votes given the zero-shot scores, with normal priors of "
    f"standard deviation {DEVIATION} on log temperature, class biases, and what rates and chances "
    "differ by between classes. Captions count where their evidence, which is what a temperature "
    "and a common rate gain in log-likelihood over votes drawn whatever the image shows, is above "
    "the log of their number; groups where that of their rate is above half of it."
)


@dataclass(frozen=True)
class CaptionLabelSettings:
    """The CLIP model that reads the captions."""

    model: str
    pretrained: str | None
    batch_size: int  # texts encoded at once
    precision: str = "bf16"


@dataclass(frozen=True)
class VoteModel:
    """What the votes of captions tell of classes; everything in float64."""

    log_temperature: torch.Tensor  # scalar: of the zero-shot scores
    biases: torch.Tensor  # [C] added to the zero-shot scores, logits
    rate_logits: torch.Tensor  # [C] log-odds that a caption names the class of its image
    log_chances: torch.Tensor  # [C] log-probabilities of what it names otherwise

    def log_prior(self, zero_shot: torch.Tensor) -> torch.Tensor:
        """[N, C]: log p(c | image) of zero-shot log-probabilities [N, C]."""
        scores = zero_shot * (-self.log_temperature).exp() + self.biases
        return scores.log_softmax(dim=1)

    def log_likelihood(self, zero_shot: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
        """Sum over the images of sum_k q_k log sum_c p(c | image) P(vote k | c).

        Args:
            zero_shot: [N, C] log-probabilities.
            votes: [N, C] rows of sum 1, or of 0 for a caption that does not vote.
        """
        prior = self.log_prior(zero_shot)
        named = prior + F.logsigmoid(self.rate_logits)  # [N, C]
        else_named = (prior + F.logsigmoid(-self.rate_logits)).logsumexp(1, keepdim=True)  # [N, 1]
        return (votes * torch.logaddexp(named, else_named + self.log_chances)).sum()

    def log_posterior(self, zero_shot: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
        """[N, C]: log fused(c), normalised; arguments as of `log_likelihood`.

        log P(vote k | c) = log(1 - rate_c) + log chance_k + [k = c] weight_c, so that the votes add
        to the log-probability of a class, and the chances are the same for all.
        """
        scores = (
            self.log_prior(zero_shot)
            + votes.sum(dim=1, keepdim=True) * F.logsigmoid(-self.rate_logits)
            + votes * self.weights()
        )
        return scores.log_softmax(dim=1)

    def weights(self) -> torch.Tensor:
        """[C]: log(1 + rate / ((1 - rate) chance)), what a vote for a class adds to its logit."""
        return F.softplus(self.rate_logits - self.log_chances)


@dataclass(frozen=True)
class Fusion:
    """Fused labels and how they came about."""

    log_posterior: torch.Tensor  # [N, C]
    model: VoteModel | None  # None where the captions tell nothing
    evidence: float  # of the captions, nats
    needed: float  # evidence from which on the captions count
    group_rate: float  # 0 where the groups tell nothing more
    group_evidence: float


def fuse(
    zero_shot: torch.Tensor, votes: torch.Tensor, group_votes: torch.Tensor, labels: torch.Tensor
) -> Fusion:
    """Fuse zero-shot scores with the votes of the captions, then with those of the groups.

    Groups were drawn by zero-shot label, so most of what they say merely repeats it. Their vote
    counts as far as it tells images of one zero-shot label apart: its chances are those of the
    label, and `group_rate` is how often it names the fused class beyond them.

    Args:
        zero_shot: [N, C] log-probabilities, float64.
        votes: [N, C] votes of the captions, rows of sum 1 or 0.
        group_votes: [N, C] mean votes of the groups of each image, rows of sum 1 or 0.
        labels: [N] zero-shot labels, from which the groups were drawn.
    """
    model, evidence, needed = fit(zero_shot, votes)
    posterior = zero_shot if model is None else model.log_posterior(zero_shot, votes)
    chances = chances_of_labels(group_votes, labels)[labels]  # [N, C]
    rate, group_evidence = fit_rate(posterior.exp(), group_votes, chances)
    if group_evidence <= _needed(group_votes) / 2:
        rate = 0.0
    posterior = posterior + group_votes * torch.log1p(rate / ((1 - rate) * chances))
    return Fusion(posterior.log_softmax(dim=1), model, evidence, needed, rate, group_evidence)


def fit(zero_shot: torch.Tensor, votes: torch.Tensor) -> tuple[VoteModel | None, float, float]:
    """The likeliest model of the votes, its evidence, and the evidence needed.

    The evidence is what a temperature and one common rate gain in log-likelihood over votes that
    are drawn from their overall distribution whatever the image shows. The Bayesian information
    criterion asks of two parameters the log of the number of votes; where the evidence is less,
    there is no model. Classes get biases, rates and chances of their own only thereafter: with them
    it would fit votes that name the classes wrongly but consistently.

    Args:
        zero_shot: [N, C] log-probabilities, float64.
        votes: [N, C] rows of sum 1 or 0, float64.
    """
    overall = _distribution(votes.sum(dim=0), _uniform(votes)).log()  # [C]
    _, density = _likeliest(zero_shot, votes, overall, own=False)
    evidence, needed = density - (votes * overall).sum().item(), _needed(votes)
    if not evidence > needed:
        return None, evidence, needed
    return _likeliest(zero_shot, votes, overall, own=True)[0], evidence, needed


def _likeliest(
    zero_shot: torch.Tensor, votes: torch.Tensor, overall: torch.Tensor, *, own: bool
) -> tuple[VoteModel, float]:
    """The model of the largest log posterior density, and this density but for constants.

    Args:
        zero_shot: [N, C].
        votes: [N, C].
        overall: [C] log of the distribution of all votes.
        own: whether classes have corrections of their own.
    """
    n_classes = len(overall)
    free = votes.new_zeros(2 + 3 * n_classes if own else 2, requires_grad=True)
    fixed = votes.new_zeros(2 + 3 * n_classes - len(free))

    def model(parameters: torch.Tensor) -> VoteModel:
        biases, rates, chances = torch.cat([parameters, fixed])[2:].chunk(3)
        log_chances = (overall + chances).log_softmax(dim=0)
        return VoteModel(parameters[0], biases, parameters[1] + rates, log_chances)

    def log_density() -> Iterator[torch.Tensor]:
        """The terms of the log posterior density, each with a graph of its own."""
        for part in zip(zero_shot.split(ROWS), votes.split(ROWS), strict=True):
            yield model(free).log_likelihood(*part)
        corrections = torch.cat([free[:1], free[2:]])  # the common rate has no prior
        yield -corrections.square().sum() / (2 * DEVIATION**2)

    optimiser = torch.optim.LBFGS(
        [free],
        max_iter=STEPS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        optimiser.zero_grad()
        total = 0.0
        for term in log_density():
            (-term / len(votes)).backward()
            total -= term.item() / len(votes)
        return total

    optimiser.step(loss)
    with torch.no_grad():
        return model(free.detach()), sum(term.item() for term in log_density())


def _needed(votes: torch.Tensor) -> float:
    """The log of the number of rows that vote; more than nothing for one or none."""
    return math.log(max(2, int((votes.sum(dim=1) > 0).sum())))


def _uniform(votes: torch.Tensor) -> torch.Tensor:
    return torch.full_like(votes[0], 1 / votes.shape[1])


def _distribution(counts: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Counts [..., C] as probabilities, with `SMOOTHING` votes of the distribution `prior` [C]."""
    smoothed = counts + SMOOTHING * prior
    return smoothed / smoothed.sum(dim=-1, keepdim=True)


def mean_group_votes(
    votes: torch.Tensor, groups: torch.Tensor, images: torch.Tensor, n_images: int
) -> torch.Tensor:
    """[N, C]: the mean vote of the groups that each image is in; 0 where none of them votes.

    Args:
        votes: [G, C] rows of sum 1, or of 0 for a group that does not vote.
        groups: [M] the group of each membership.
        images: [M] its image.
    """
    total = votes.new_zeros(n_images, votes.shape[1]).index_add(0, images, votes[groups])
    return total / total.sum(dim=1, keepdim=True).clamp(min=1)


def chances_of_labels(votes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[C, C]: the mean vote of the images of each zero-shot label, all its entries positive.

    Args:
        votes: [N, C] rows of sum 1 or 0.
        labels: [N].
    """
    n_classes = votes.shape[1]
    overall = _distribution(votes.sum(dim=0), _uniform(votes))  # [C]
    totals = votes.new_zeros(n_classes, n_classes).index_add(0, labels, votes)
    return _distribution(totals, overall)


def fit_rate(
    posterior: torch.Tensor, votes: torch.Tensor, chances: torch.Tensor
) -> tuple[float, float]:
    """The rate r below 1 that maximises sum q log(r posterior + (1 - r) chances), a concave sum.

    Args:
        posterior: [N, C] probabilities.
        votes: [N, C], q: rows of sum 1 or 0.
        chances: [N, C] probabilities of each vote, were nothing else known of the image.

    Returns:
        The rate, and what it gains over the rate 0, in nats.
    """
    ratio = posterior / chances - 1  # [N, C]
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if (votes * ratio / (1 + middle * ratio)).sum() > 0:
            low = middle
        else:
            high = middle
    return low, (votes * torch.log1p(low * ratio)).sum().item()


def label_by_captions(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    image_captions_path: str,
    group_captions_path: str,
    settings: CaptionLabelSettings,
    output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Write CAPTION_LABELS for every image that is not in the test split; labels are not read.

    Raises:
        UserError: an input lacks an image or does not belong to the others.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    if not image_ids:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    embeddings, described = classifiers.load_classifier(class_embeddings_path)  # [C, D]
    wanted = [classnames, settings.model, settings.pretrained]
    if [described[key] for key in ("classnames", "model", "pretrained")] != wanted:
        raise UserError(
            f"{class_embeddings_path} is of other classes or another CLIP than asked for; "
            "delete it and rerun its stage."
        )
    scale = described["logit_scale"]
    zero_shot = scale * (_features(pseudo_labels_path, table["image_id"]) @ embeddings.T)  # [N, C]
    labels = tables.lookup(
        pseudo_labels_path, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids
    )
    captions, prompts = (
        tables.lookup(image_captions_path, tables.CAPTIONS, "id", column, image_ids)
        for column in ("caption", "prompt")
    )
    if len(set(prompts)) > 1:
        log.warning(
            "The captions were asked with the pseudo-labels in the prompt: they may agree with the "
            "zero-shot labels because they were told them, and then correct few."
        )
    group_captions, groups, members = _groups(group_captions_path, image_ids)
    clip = clips.load(
        settings.model, settings.pretrained, devices.pick(device, threads), settings.precision
    )
    votes = _votes(
        [*captions, *group_captions], clip, scale * embeddings, settings.batch_size
    )  # [N + G, C]
    own, of_groups = votes.split([len(captions), len(group_captions)])
    own_labels = torch.tensor(labels)  # [N]
    of_groups = mean_group_votes(of_groups, groups, members, len(image_ids))  # [N, C]
    fusion = fuse(zero_shot.double().log_softmax(dim=1), own, of_groups, own_labels)
    _write(output, table["image_id"], own_labels, own, of_groups, fusion, {**described, "how": HOW})


def _features(path: str, image_ids: pa.ChunkedArray) -> torch.Tensor:
    """Image features [N, D] in a PSEUDO_LABELS table, in the order of `image_ids`.

    Raises:
        UserError: the table lacks one of them.
    """
    table, _ = tables.read(path, tables.PSEUDO_LABELS, ["image_id", "image_features"])
    rows = pc.index_in(image_ids, table["image_id"])
    if rows.null_count:
        raise UserError(
            f"{path} lacks {rows.null_count} of {len(rows)} images; delete it and rerun its stage."
        )
    features = table["image_features"].take(rows).combine_chunks()
    return torch.tensor(features.flatten().to_numpy()).reshape(len(features), -1)


def _groups(
    path: str, image_ids: Sequence[str]
) -> tuple[list[str | None], torch.Tensor, torch.Tensor]:
    """Captions of the G groups; group [M] and image [M] of each membership, counted once.

    Raises:
        UserError: a member is no training image.
    """
    table, _ = tables.read(path, tables.CAPTIONS, ["members", "caption"])
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    try:
        pairs = [
            (group, row_of[member])
            for group, members in enumerate(table["members"].to_pylist())
            for member in dict.fromkeys(members)
        ]
    except KeyError as error:
        raise UserError(
            f"{path} speaks of the image {error}, which is no training image; delete it and rerun."
        ) from None
    groups, images = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return table["caption"].to_pylist(), groups, images


@torch.no_grad()
def _votes(
    captions: Sequence[str | None], clip: clips.Clip, classes: torch.Tensor, batch_size: int
) -> torch.Tensor:
    """Votes [T, C] in float64: softmax of the scaled scores, or zeros for an empty caption.

    Each distinct caption is encoded once. The tokenizer cuts what is too long for the text tower.

    Args:
        classes: [C, D] class embeddings times the logit scale.
    """
    texts = [(caption or "").strip() for caption in captions]
    row_of = {text: row for row, text in enumerate(dict.fromkeys(filter(None, texts)))}
    distinct = list(row_of)
    progress = Progress(len(distinct), "captions")
    votes = []
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        scores = clips.encode_texts(clip, clip.tokenizer(batch)).cpu() @ classes.T
        votes.append(scores.double().softmax(dim=1))
        progress.add(len(batch))
    nothing = torch.zeros(1, len(classes), dtype=torch.float64)  # the last row
    return torch.cat([*votes, nothing])[[row_of.get(text, -1) for text in texts]]


def _write(
    output: str,
    image_ids: pa.ChunkedArray,
    labels: torch.Tensor,
    votes: torch.Tensor,
    group_votes: torch.Tensor,
    fusion: Fusion,
    described: dict[str, object],
) -> None:
    """Write CAPTION_LABELS and say in one line what the captions did."""
    voted, grouped = votes.sum(dim=1) > 0, group_votes.sum(dim=1) > 0  # [N]
    caption_labels = torch.where(voted, votes.argmax(dim=1), labels)
    confidence, fused_labels = fusion.log_posterior.max(dim=1)
    if fusion.model is None and fusion.group_rate == 0:
        fused_labels = labels  # ties included
    summary = {
        **_trust(fusion),
        "captions": int(voted.sum()),  # that vote
        "agreement": int((caption_labels == labels)[voted].sum()) / max(1, int(voted.sum())),
        "changed": int((fused_labels != labels).sum()),
    }
    tables.write(
        output,
        {
            "image_id": image_ids,
            "caption_label": pa.array(caption_labels.numpy(), pa.int32()),
            "caption_confidence": pa.array(votes.amax(dim=1).float().numpy()),
            "group_label": pa.array(
                group_votes.argmax(dim=1).numpy(), pa.int32(), mask=~grouped.numpy()
            ),
            "fused_label": pa.array(fused_labels.numpy(), pa.int32()),
            "fused_confidence": pa.array(confidence.exp().float().numpy()),
        },
        tables.CAPTION_LABELS,
        {**described, **summary},
    )
    log.info(
        "%(captions)d captions agree with %(agreement).1f %% of the zero-shot labels "
        "(evidence %(evidence).1f, %(evidence_needed).1f needed): temperature %(temperature).2f, "
        "rate %(rate).2f, group rate %(group_rate).3f; %(changed)d labels changed.",
        {**summary, "agreement": 100 * summary["agreement"]},
    )


def _trust(fusion: Fusion) -> dict[str, Any]:
    """What was learned of the captions, for the metadata and the log."""
    learned: dict[str, Any] = {"temperature": 1.0, "rate": 0.0}
    if fusion.model is not None:
        rates = fusion.model.rate_logits.sigmoid()
        learned = {
            "temperature": fusion.model.log_temperature.exp().item(),
            "rate": rates.mean().item(),
            "class_biases": fusion.model.biases.tolist(),
            "class_rates": rates.tolist(),
            "class_chances": fusion.model.log_chances.exp().tolist(),
            "class_weights": fusion.model.weights().tolist(),
        }
    return {
        **learned,
        "evidence": fusion.evidence,
        "evidence_needed": fusion.needed,
        "group_rate": fusion.group_rate,
        "group_evidence": fusion.group_evidence,
    }

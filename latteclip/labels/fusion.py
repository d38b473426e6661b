"""Votes, zero-shot scores and image prototypes that predict one another. Not in the paper.

A caption (or a multimodal model that is asked) votes for the class of its image. How reliable the
votes are is estimated from how well two predictors that never saw them predict them: zero-shot
scores z, and cosines s_m with one prototype per class of the whitened image features of each model
m, without the image's own part. CLIP is the first model. Another model takes part where the votes
of images that look alike to it agree more than permuted votes do, and where it makes the votes
likelier. Without any label, in ROUNDS rounds:

    q(c | image)    = softmax_c(a z_c + sum_m b_m s_mc + log frequency_c / 2)
    P(vote k | c)   = theta_ck, near u [k = c] + (1 - u) r_k
    fused(c)       ~= q(c | image)^e * theta_ck * prod_j phi_cj^(3 v_j) * exp(w t_c)

k is the class that the vote v gives the largest probability, and j are the other classes. a, b and
u maximise the likelihood of the votes k, and r is their mean. The confusion matrix theta [C, C]
follows by expectation-maximisation (Dawid and Skene 1979) under a Dirichlet prior. phi [C, C] is
the mean vote v among the images of each class: what comes second is evidence where other images
with the same first class have something else there. t are cosines of the caption with prototypes of
captions, and w is as large as they agree with q. Prototypes and frequencies of the next round are
those of `fused`.

e says how far images are trusted beside a vote (`trust_in_images`). u is the share of the votes
that q explains, and A the share that it predicts. Were votes right for a share u of the images and
wrong at random, q would be right for A / u of them. Images are trusted less where that is less than
u, and half where they explain all votes: there they make the same mistakes. Where votes agree with
the predictors no better than permuted votes do (`corroborate`), they carry no information, and the
labels are the adapted ones of `adaptation`.

A person's answer replaces the posterior of its image, weighs ANSWER_WEIGHT in the prototypes, and
counts as a certain vote in the fit of a, b and u. In that of theta, the class is known. The weights
of q, of the vote and of t in the posterior are then fitted to the answers, with a prior at the
values above, and so are at last those of the posterior and of a regression on the answers alone
(`probe`). Where votes carry no information, answers alone are the votes.

The classifier of new images is a linear discriminant of the labels (`Discriminants`).

Computed in float64, some rows at a time. Parameters are learned on a sample of many images.
Letters: N training images, n some of them, C classes, D embedding width, K classes kept, M image
models, A answered images.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from latteclip.labels import label_sources
from latteclip.labels.label_sources import (
    CentredFeatures,
    ClipFeatures,
    Head,
    Rows,
    Votes,
    parts,
)
from latteclip.labels.likelihood import TINY, cross_entropy, fit_mixture, fit_weights, pool
from latteclip.labels.permutation_test import SEED, PermutationTest, corroborate
from latteclip.labels.probe import Probe
from latteclip.labels.prototypes import FOLDS, Discriminants, Posterior, Prototypes, spaced

log = logging.getLogger(__name__)
ROUNDS = 6
EM_STEPS = 3  # steps of expectation-maximisation in each round
# Votes of each class as a, b and u predict them, times 1 / u^2. Where a class has fewer than
# ENOUGH images on average, proportionally more: their errors cannot be learned.
PRIOR = 6.0
ENOUGH = 25
OTHER_CLASSES = 3.0  # weight of the classes that a vote finds less likely
# Entries of a table of images and classes from which theta is learned, at most.
SAMPLE = 2**23
SMALL_SAMPLE = 2**21  # the same for a, b, u and w, which are a few numbers
ANSWER_WEIGHT = 3.0  # weight of an answered image in the prototypes
PRIOR_ANSWERS = 100.0  # precision of the prior of the weights that are fitted to answers
MIN_RATIO = 1.35  # nats: a likelihood-ratio test of one weight, significant at 10 %
FUSED = "fused"
OTHER = "encoder_"  # begin of the name of another image encoder's gain, before its number


def trust_in_images(explained_share: float, agreement: float) -> float:
    """Return the exponent of q beside a vote, by the share u of the votes it explains and by A."""
    reliability = min(1.0, agreement / max(TINY, explained_share) ** 2)
    return (1 - explained_share**8 / 2) * reliability**2


@dataclass(frozen=True)
class FusionParameters:
    """What was learned of predictors and votes."""

    test: PermutationTest
    confusion: torch.Tensor  # [C, C] theta; no rows without votes that carry information
    others: torch.Tensor  # [C, C] phi
    zero_shot: float = 1.0  # a
    images: tuple[float, ...] = (0.0,)  # b, of CLIP and of each other model
    texts: float = 0.0  # w
    explained_share: float = 0.0  # u
    agreement: float = 0.0  # A
    votes: float = 1.0  # exponent of the vote
    by_answers: float | None = None  # exponent of q beside a vote, if it was fitted

    @property
    def weights(self) -> torch.Tensor:
        """Return [1 + M] a and b."""
        return torch.tensor([self.zero_shot, *self.images], dtype=torch.float64)

    @property
    def independence(self) -> float:
        """Return the exponent of q beside a vote."""
        if self.by_answers is not None:
            return self.by_answers
        return trust_in_images(self.explained_share, self.agreement)

    def log_likelihood(self, votes: torch.Tensor) -> torch.Tensor:
        """Return the log-likelihood [n, C] of votes [n, C] by class."""
        likelihood = (self.confusion.T + TINY).log()[votes.argmax(dim=1)]
        others = votes - votes * first_classes(votes)
        # A product with a table of classes, which is slow where there are many.
        if others.any():
            likelihood = likelihood + OTHER_CLASSES * others @ (self.others.T + TINY).log()
        return likelihood

    def classes(self, votes: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of classes [n, C] by votes [n, C] alone."""
        if not len(self.confusion):
            return votes
        return self.log_likelihood(votes).softmax(dim=1)


class CrossFitted(NamedTuple):
    """Labels of the J images drawn to check them, each learned without the image's answer."""

    confidence: torch.Tensor  # [J] float32
    right: torch.Tensor  # [J] bool: by the answers
    # [J, C] float32 of each class, for classifiers; [J, 0] for labels
    probabilities: torch.Tensor


@dataclass(frozen=True)
class Fusion:
    """Fused labels, and classifiers of centred features."""

    parameters: FusionParameters
    labels: torch.Tensor  # [N] the likeliest class
    confidence: torch.Tensor  # [N] float32, its probability
    # [N] by "zero_shot" adapted, by CLIP's "images"
    individual_labels: dict[str, torch.Tensor]
    gains: dict[str, float]  # log-likelihood of the votes over their mean, by predictors
    head: Head  # classifier of CLIP's features
    joint_heads: tuple[Head, ...]  # classifiers of each model's features
    # [N] the class by `head`, learned from other folds of the images
    predicted: torch.Tensor
    joint_predicted: torch.Tensor  # [N] the same of `joint_heads`
    # FUSED labels, and those of classifiers by the names of their files, if answers check them.
    checked: Mapping[str, CrossFitted] = field(default_factory=dict)

    def of_first(self, n: int) -> "Fusion":
        """Return the labels of the first n images: the others are examples."""
        individual = {name: labels[:n] for name, labels in self.individual_labels.items()}
        return replace(
            self,
            labels=self.labels[:n],
            confidence=self.confidence[:n],
            individual_labels=individual,
            predicted=self.predicted[:n],
            joint_predicted=self.joint_predicted[:n],
        )


class LabelModel:
    """The model of the labels while it is learned."""

    def __init__(
        self,
        images: ClipFeatures,
        votes: Votes,
        others: Sequence[CentredFeatures] = (),
        test: PermutationTest | None = None,
    ) -> None:
        self.n = len(images.centred)
        self.n_classes = len(images.texts.bias)
        self.sample = spaced(votes.has.nonzero()[:, 0], self.n_classes, SAMPLE)
        test = test or corroborate(images, votes, self.sample, others)
        if not test.significant:
            votes = Votes(torch.zeros(self.n, dtype=torch.bool), votes.probabilities)
            self.sample = self.sample[:0]
            images = replace(images, texts=images.adapted)
        self.images = images
        self.votes = votes
        self.others = others
        # Without votes, answers tell which image encoders are of use.
        self.used = test.informative if test.significant else list(range(len(others)))
        nothing = torch.empty(0, self.n_classes)
        weights = (0.0,) * (1 + len(others))
        no_rows = torch.empty(0, dtype=torch.long)
        self.answers = label_sources.LabelledRows(
            self.n, no_rows, nothing.double(), no_rows > 0
        )
        self.parameters = FusionParameters(test, nothing, nothing, images=weights)
        self.probe: Probe | None = None
        # `prototypes` serve the next round. From `last` the parameters were learned.
        start = self.first if test.significant else images.probabilities
        self.prototypes = self.last = self._prototypes(start)

    def first(self, rows: Rows) -> torch.Tensor:
        """Return the likeliest classes [n, C] of votes, one-hot."""
        return first_classes(self.votes.probabilities(rows))

    def _prototypes(self, table: Callable[[slice], torch.Tensor]) -> Prototypes:
        """Return the prototypes by a posterior of which `table` returns some rows [n, C]."""
        weights = torch.where(self.answers.place >= 0, ANSWER_WEIGHT, 1.0).double()
        return self._of_used_models(Posterior.of(table, self.n_classes, weights))

    def _of_used_models(self, posterior: Posterior) -> Prototypes:
        used = [self.others[i] for i in self.used]
        return Prototypes(self.images, posterior, used, self.votes.text_features)

    def vote_log_likelihood(self, rows: Rows, parameters: FusionParameters) -> torch.Tensor:
        """Return the log-likelihood [n, C] of the votes of some rows by class."""
        return parameters.log_likelihood(self.votes.probabilities(rows))

    def without(self, number: int) -> "LabelModel":
        """Return the model without the votes of a voter, by its number: here there is one."""
        model = copy.copy(self)
        model.votes = replace(self.votes, has=torch.zeros_like(self.votes.has))
        model.parameters = replace(self.parameters, texts=0.0)
        return model

    @property
    def is_informed(self) -> bool:
        """Whether votes or answers carry information; else the labels are zero-shot ones."""
        return self.parameters.test.significant or len(self.answers.taught) > 0

    def answered(self, answers: label_sources.LabelledRows) -> "LabelModel":
        """Return a model with these answers, which goes on from the posterior so far.

        Where votes carry no information, the prototypes start from the answers alone.
        """
        model = copy.copy(self)
        model.answers = answers
        model.probe = None
        is_first = not len(self.answers.rows) and not self.parameters.test.significant

        def table(rows: slice) -> torch.Tensor:
            before = self.prototypes.posterior.table(rows)
            if is_first:
                before = torch.zeros_like(before)
            posterior = answers.replace(rows, (before + TINY).log()).exp()
            is_known = before.any(dim=1) | (answers.place[rows] >= 0)
            return posterior * is_known[:, None]

        model.prototypes = model._prototypes(table)
        return model

    def step(self, *, light: bool = False) -> None:
        """Learn parameters from votes or answers if there are any, and update the prototypes.

        Where there are both, a light step learns what answers decide, without the confusion matrix.
        """
        if not self.is_informed:
            return
        self.last = self.prototypes
        is_light = light and len(self.answers.rows) and self.parameters.test.significant
        self.parameters = self._fit_to_answers(
            self.parameters if is_light else self._learn()
        )
        self.prototypes = self._prototypes(lambda rows: self.log_posterior(rows).exp())

    def _learning_sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images to learn from, and the places of those for a few numbers among them.

        Images with answers of a class are the last ones.
        """
        answers = self.answers
        sample = self.sample
        small = spaced(torch.arange(len(sample)), self.n_classes, SMALL_SAMPLE)
        if not len(answers.rows):
            return sample, small
        sample = sample[small]
        sample = torch.cat([sample[answers.place[sample] < 0], answers.taught])
        return sample, torch.arange(len(sample))

    def _learn(self) -> FusionParameters:
        """Return the likeliest parameters on a sample of the images with votes or answers."""
        answers = self.answers
        test = self.parameters.test
        sample, small = self._learning_sample()
        predictors = self.last.predictors(sample)
        votes = self.votes.probabilities(sample)
        first = first_classes(votes)
        offset = self.last.offset
        targets = answers.at_end(first)
        overall = targets.mean(dim=0)
        some = [table[small] for table in predictors]
        cast = targets[small]
        weights, share = fit_mixture(some, cast, overall, offset)
        if not test.significant:
            zero_shot, *images = weights.tolist()
            return replace(
                self.parameters,
                zero_shot=zero_shot,
                images=tuple(images),
                explained_share=share,
            )
        base = expected_votes(share, overall)
        prior = prior_votes(share, int(self.votes.has.sum()), self.n_classes)
        confusion = self.parameters.confusion if len(self.parameters.confusion) else base
        for _ in range(EM_STEPS):
            predicted = answers.at_end(pool(predictors, weights, offset).softmax(dim=1))
            # Expected counts of votes by class, [C, C].
            seen = first / (predicted @ confusion).clamp(min=TINY)
            confusion = normalised(confusion * (predicted.T @ seen) + prior * base)
            weights = fit_weights(
                some,
                cast,
                start=weights,
                offset=offset,
                confusion=confusion,
                n_known=len(answers.truth),
            )
        scores = pool(predictors, weights, offset)
        is_asked = first.any(dim=1)
        hits = scores.argmax(dim=1) == first.argmax(dim=1)
        agreement = hits[is_asked].double().mean().item()
        e = trust_in_images(share, agreement)
        posterior = e * scores + is_asked[:, None] * (first @ confusion.T + TINY).log()
        posterior = answers.at_end(posterior.softmax(dim=1)) * is_asked[:, None]
        others = mean_votes(posterior, votes, prior * confusion)
        zero_shot, *images = weights.tolist()
        parameters = FusionParameters(
            test=test,
            confusion=confusion,
            others=others,
            zero_shot=zero_shot,
            images=tuple(images),
            explained_share=share,
            agreement=agreement,
        )
        return self._with_texts(parameters, sample[small], scores[small])

    def learned_agreement(self) -> float:
        """Return the share of the votes that predictors name once they have learned from them."""
        return self._learn().agreement

    def _with_texts(
        self, parameters: FusionParameters, rows: torch.Tensor, scores: torch.Tensor
    ) -> FusionParameters:
        """Return parameters in which texts count as far as they agree with scores [n, C] of q."""
        texts = self.last.text_scores(rows)
        if texts is None:
            return parameters
        predicted = self.answers.at_end(scores.softmax(dim=1))
        both = [self.vote_log_likelihood(rows, parameters), texts]
        return replace(parameters, texts=fit_weights(both, predicted)[1].item())

    def _fit_to_answers(self, parameters: FusionParameters) -> FusionParameters:
        """Return parameters whose exponents make the answers about images with votes likely."""
        has = self.votes.has[self.answers.taught]
        rows = self.answers.taught[has]
        truth = self.answers.truth[has]
        if not len(rows):
            return parameters
        factors = [
            pool(self.last.predictors(rows), parameters.weights, self.last.offset),
            self.vote_log_likelihood(rows, parameters),
        ]
        prior = [parameters.independence, 1.0]
        texts = self.last.text_scores(rows)
        if texts is not None:
            factors = [*factors, texts]
            prior = [*prior, parameters.texts]
        centre = torch.tensor(prior, dtype=torch.float64)
        precision = PRIOR_ANSWERS / len(truth)
        exponents = fit_weights(factors, truth, centre, centre=centre, precision=precision)
        exponent, vote, *text = exponents.tolist()
        return replace(parameters, by_answers=exponent, votes=vote, texts=sum(text))

    def log_posterior(self, rows: Rows) -> torch.Tensor:
        """Return log fused(c) [n, C], normalised, in which answers replace the posterior."""
        return self.answers.replace(rows, self.predicted_log_posterior(rows))

    def predicted_log_posterior(
        self, rows: Rows, predictors: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """Return log fused(c) [n, C] by predictors, by default the last ones, and votes alone."""
        parameters = self.parameters
        has = self.votes.has[rows, None]
        predictors = predictors or self.last.predictors(rows)
        if not self.is_informed:
            return predictors[0]
        scores = pool(predictors, parameters.weights, self.last.offset)
        scores = torch.where(has, parameters.independence * scores, scores)
        if len(parameters.confusion):
            of_votes = parameters.votes * self.vote_log_likelihood(rows, parameters)
            scores = scores + of_votes * has
        texts = self.last.text_scores(rows) if parameters.texts else None
        if texts is not None:
            scores = scores + parameters.texts * texts
        if self.probe is not None:
            scores = self.probe.beside(scores, rows)
        return scores.log_softmax(dim=1)

    def learn_probe(self) -> None:
        """Learn a regression on the answers, and how far it counts beside the posterior."""
        rows = self.answers.taught
        truth = self.answers.truth
        if not len(rows):
            return
        models = (self.images, *(self.others[number] for number in self.used))
        scores = self.predicted_log_posterior(rows)
        self.probe = Probe.of(models, rows, truth, scores, PRIOR_ANSWERS)
        self.prototypes = self._prototypes(lambda rows: self.log_posterior(rows).exp())

    def learn(self, rounds: int) -> dict[str, float]:
        """Learn from votes or answers in some rounds, and return the gains of the predictors.

        While an image encoder explains too little of the votes, the rounds begin again without the
        one that explains least.
        """
        start = self.prototypes.posterior
        parameters = self.parameters
        while True:
            self._take_steps(rounds)
            sample = self.small_sample
            if not len(sample):
                return {}
            gained, ratios = gains(
                self.last.predictors(sample), self.first(sample), self.used
            )
            useless = min(ratios, key=ratios.__getitem__, default=None)
            if useless is None or ratios[useless] >= MIN_RATIO:
                return gained
            self.used = [number for number in self.used if number != useless]
            self.prototypes = self._of_used_models(start)
            self.parameters = parameters

    def _take_steps(self, rounds: int) -> None:
        """Take steps, and return to the best of them where later ones lost what it knew.

        Predictors that name a share A of the votes miss at most 1 - A that are wrong. So labels
        that correct wrong votes lower A by no more than that. Where A falls further, a class has
        captured the images of another one.
        """
        self.step()
        best = copy.copy(self)
        best_number = 1
        for number in range(2, rounds + 1):
            self.step()
            if self.parameters.agreement > best.parameters.agreement:
                best = copy.copy(self)
                best_number = number
        most = best.parameters.agreement
        least = self.parameters.agreement
        if most - least > 1 - most:
            log.info(
                "After round %d of %d, images named %.0f %% of the votes, and %.0f %% at the end: "
                "the labels are those of that round.",
                best_number,
                rounds,
                100 * most,
                100 * least,
            )
            vars(self).update(vars(best))

    @property
    def small_sample(self) -> torch.Tensor:
        """Return the images from which a few numbers are learned."""
        return spaced(self.sample, self.n_classes, SMALL_SAMPLE)

    def fused(self) -> Fusion:
        """Learn in ROUNDS rounds, and return the labels and the classifiers by their posterior."""
        gained = self.learn(ROUNDS)
        self.learn_probe()
        columns = torch.empty(5, self.n, dtype=torch.long)
        labels, zero_shot, images, predicted, joint_predicted = columns
        confidence = torch.empty(self.n)
        heads = _Heads(self)
        for rows in parts(self.n):
            predictors = self.last.predictors(rows)
            x = self.images.centred[rows].double()
            zero_shot[rows] = self.images.adapted.logits(x).argmax(dim=1)
            images[rows] = predictors[1].argmax(dim=1)
            posterior = self.predicted_log_posterior(rows, predictors)
            best = self.answers.replace(rows, posterior).exp().max(dim=1)
            confidence[rows] = best.values.float()
            # An image of none of the classes has confidence 0.
            labels[rows] = torch.where(best.values > 0, best.indices, zero_shot[rows])
            predicted[rows], joint_predicted[rows] = heads.held_out(rows)
        parameters = self.parameters
        individual = {"zero_shot": zero_shot}
        if self.is_informed:
            individual["images"] = images
        own, *of_used = parameters.images
        weight_of = dict(zip(self.used, of_used, strict=True))
        others = (weight_of.get(i, 0.0) for i in range(len(self.others)))
        return Fusion(
            parameters=replace(parameters, images=(own, *others)),
            labels=labels,
            confidence=confidence,
            individual_labels=individual,
            gains=gained,
            head=heads.own,
            joint_heads=self._of_all(heads.joint),
            predicted=predicted,
            joint_predicted=joint_predicted,
        )

    def _of_all(self, heads: Sequence[Head]) -> tuple[Head, ...]:
        """Return the heads of CLIP, of the used models, and zeros for the other models."""
        first, *others = heads
        head_of = dict(zip(self.used, others, strict=False))
        no_bias = torch.zeros_like(first.bias)
        of_all = [first]
        for number, model in enumerate(self.others):
            zeros = no_bias.new_zeros(self.n_classes, len(model.mean))
            of_all.append(head_of.get(number, Head(zeros, no_bias)))
        return tuple(of_all)


class _Heads:
    """Classifiers by the posterior of a model: by CLIP's features alone, and by all models'."""

    def __init__(self, model: LabelModel) -> None:
        self.images = model.images
        self.is_informed = model.is_informed
        texts = model.images.texts
        self.own = texts
        self.joint: tuple[Head, ...] = (texts,)
        if not self.is_informed:
            return
        prototypes = model.prototypes
        self.offset = model.prototypes.offset
        self.discriminants = Discriminants(prototypes.posterior, prototypes.models)
        sample = model.small_sample if len(model.sample) else model.answers.taught
        targets = model.log_posterior(sample).exp()
        tables = self._tables(sample)
        self.own_weights = self.joint_weights = fit_weights(
            tables[:2], targets, offset=self.offset
        )
        if len(tables) > 2:
            self.joint_weights = fit_weights(tables, targets, offset=self.offset)
        self.own, *_ = self._heads(self.own_weights)
        self.joint = self._heads(self.joint_weights)

    def _tables(self, rows: torch.Tensor) -> list[torch.Tensor]:
        return [self.images.zero_shot(rows), *self.discriminants.held_out(rows)]

    def _heads(self, weights: torch.Tensor) -> tuple[Head, ...]:
        texts = self.images.texts
        of_texts, *of_images = weights
        pairs = zip(of_images, self.discriminants.of_all, strict=False)
        first, *others = (weight * discriminant for weight, discriminant in pairs)
        bias = of_texts * texts.bias + self.offset
        heads = [Head(of_texts * texts.weights + first, bias)]
        no_bias = torch.zeros_like(self.offset)
        heads += [Head(other, no_bias) for other in others]
        return tuple(heads)

    def held_out(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the classes of some rows by CLIP alone and by all models, of other folds."""
        if not self.is_informed:
            labels = self.images.zero_shot(rows).argmax(dim=1)
            return labels, labels
        tables = self._tables(torch.arange(rows.start, rows.stop))
        own = pool(tables[:2], self.own_weights, self.offset).argmax(dim=1)
        if len(tables) == 2:
            return own, own
        return own, pool(tables, self.joint_weights, self.offset).argmax(dim=1)


def fuse(
    images: ClipFeatures,
    votes: Votes,
    others: Sequence[CentredFeatures] = (),
    labelled: label_sources.LabelledRows | None = None,
) -> Fusion:
    """Label N images by zero-shot scores, image prototypes, votes and a person's answers."""
    start = LabelModel(images, votes, others)
    if labelled is None:
        return start.fused()
    checked = cross_fit(start, labelled) if labelled.drawn.any() else {}
    return replace(start.answered(labelled).fused(), checked=checked)


def cross_fit(
    model: LabelModel, labelled: label_sources.LabelledRows
) -> dict[str, CrossFitted]:
    """Label the images drawn to check, each without its answer and those of its fold."""
    checking = labelled.drawn.nonzero()[:, 0]
    order = torch.randperm(len(checking), generator=torch.Generator().manual_seed(SEED))
    fitted: dict[str, CrossFitted] = {}
    for fold in order.chunk(FOLDS):
        use = torch.ones(len(labelled.rows), dtype=torch.bool)
        use[checking[fold]] = False
        fusion = model.answered(labelled.select(use)).fused()
        rows = labelled.rows[checking[fold]]
        models = (model.images, *model.others)
        nothing = torch.zeros(len(rows), 0)
        predicted = {FUSED: (fusion.labels[rows], fusion.confidence[rows], nothing)}
        predicted["image_prototypes"] = _classified(models, (fusion.head,), rows)
        if model.others:
            predicted["image_prototypes_encoders"] = _classified(
                models, fusion.joint_heads, rows
            )
        for name, (labels, confidence, probabilities) in predicted.items():
            n = len(checking)
            is_right = torch.zeros(n, dtype=torch.bool)
            table = torch.zeros(n, probabilities.shape[1])
            checked = fitted.setdefault(name, CrossFitted(torch.zeros(n), is_right, table))
            checked.confidence[fold] = confidence.float()
            checked.probabilities[fold] = probabilities.float()
            shares = labelled.shares[checking[fold]].gather(1, labels[:, None])
            checked.right[fold] = shares[:, 0] > 0
    return fitted


def _classified(
    models: Sequence[CentredFeatures], heads: Sequence[Head], rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best class, its probability, and those of all classes, by heads of models."""
    logits = []
    for model, head in zip(models, heads, strict=False):
        x = model.centred[rows].double()
        logits.append(head.logits(x))
    probabilities = torch.stack(logits).sum(dim=0).softmax(dim=1)
    best = probabilities.max(dim=1)
    return best.indices, best.values, probabilities


def first_classes(votes: torch.Tensor) -> torch.Tensor:
    """Return the likeliest class of votes [n, C], one-hot; 0 without a vote."""
    first = F.one_hot(votes.argmax(dim=1), votes.shape[1]).double()
    return first * votes.any(dim=1, keepdim=True)


def normalised(table: torch.Tensor) -> torch.Tensor:
    """Return a table [C, C] whose rows sum to 1."""
    return table / table.sum(dim=1, keepdim=True)


def expected_votes(share: float, overall: torch.Tensor) -> torch.Tensor:
    """Return votes by class [C, C] of which a share is right, and the others fall as all [C] do."""
    return share * torch.eye(len(overall), dtype=torch.float64) + (1 - share) * overall


def prior_votes(share: float, n_votes: int, n_classes: int) -> float:
    """Return how many votes of each class the prior of a confusion matrix counts for."""
    scarcity = max(1.0, ENOUGH * n_classes / max(1, n_votes))
    return PRIOR * scarcity / max(share, TINY) ** 2


def mean_votes(
    posterior: torch.Tensor, votes: torch.Tensor, prior: torch.Tensor
) -> torch.Tensor:
    """Return the mean vote [C, C] among the images of each class (phi).

    The posterior and the votes are [n, C], and `prior` are votes by class and first class [C, C].
    """
    by_first = normalised(first_classes(votes).T @ votes + TINY + 1e-3 * votes.mean(dim=0))
    return normalised(posterior.T @ votes + prior @ by_first)


def gains(
    predictors: Sequence[torch.Tensor], votes: torch.Tensor, others: Sequence[int]
) -> tuple[dict[str, float], dict[int, float]]:
    """Return the nats per vote that predictors gain over the mean vote.

    Predictors are z, and s of CLIP and of `others`, tables [n, C] like the votes. The nats by which
    each of `others` makes all votes likelier are returned as well.
    """
    overall = votes.mean(dim=0)

    def loss(tables: Sequence[torch.Tensor]) -> float:
        weights, share = fit_mixture(tables, votes, overall)
        mixed = share * pool(tables, weights).softmax(dim=1) + (1 - share) * overall
        return cross_entropy(votes, mixed).item()

    blind = cross_entropy(votes, overall.expand_as(votes)).item()
    both = loss(predictors)
    losses = {
        "both": both,
        "zero_shot": loss(predictors[:1]),
        "images": loss(predictors[1:2]),
    }
    ratios = {}
    for position, number in enumerate(others, start=2):
        losses[f"{OTHER}{number}"] = loss(predictors[position : position + 1])
        without = [*predictors[:position], *predictors[position + 1 :]]
        ratios[number] = len(votes) * (loss(without) - both)
    return {name: blind - value for name, value in losses.items()}, ratios

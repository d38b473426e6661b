"""Votes, zero-shot scores and image prototypes that predict one another. Not in the paper.

A caption (or a multimodal model that is asked) votes for the class of its image. How reliable the
votes are is estimated from how well two predictors that never saw them predict them: calibrated
zero-shot scores z, and cosines s_m with one prototype per class of the image features of each model
m, without the image's own part. CLIP is the first model. The features of another model are
whitened. It takes part where the votes of images that look alike to it agree more than permuted
votes do, and where it makes the votes likelier. Without any label, in ROUNDS rounds:

    q(c | image)    = softmax_c(a z_c + sum_m b_m s_mc)
    P(vote k | c)   = theta_ck, near u [k = c] + (1 - u) r_k
    fused(c)       ~= q(c | image)^(1 - u^4) * sum_k v_k theta_ck * exp(w t_c)

a, b and u maximise the likelihood of the votes v, and r is the mean vote. The confusion matrix
theta [C, C] follows by expectation-maximisation (Dawid and Skene 1979) under a Dirichlet prior. t
are cosines of the caption with prototypes of captions, and w is as large as they agree with q. The
prototypes of the next round are means under `fused`.

u is the share of the votes that q explains. Where u is large, votes and q make the same mistakes,
and their product would be too sure of these mistakes. Hence the exponent, whose form is a guess
that two development sets support. Where votes agree with the predictors no better than permuted
votes do (`corroborate`), they carry no information, and the labels are those of z.

A person's answer replaces the posterior of its image, weighs ANSWER_WEIGHT in the prototypes, and
counts as a certain vote in the fit of a, b and u. In that of theta, the class is known. The weights
of q, of the vote and of t in the posterior are then fitted to the answers, with a prior at the
values above. Where votes carry no information, answers alone are the votes.

Computed in float64, some rows at a time. Parameters are learned on a sample of many images.
Letters: N training images, n some of them, C classes, D embedding width, K classes kept, M image
models, A answered images.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch

from latteclip.clip.classifier import best_classes
from latteclip.labels import label_sources
from latteclip.labels.label_sources import CalibratedFeatures, CentredFeatures, Rows, Votes, parts

ROUNDS = 8
EM_STEPS = 3  # in each round
INDEPENDENCE = 4  # exponent of u: found on the demo and on photographs of DTD
PRIOR = 5.0  # votes of each class as a, b and u predict them, times 1 / u^2
SHARPNESS = 5.0  # of cosines: it brings them to the size of log-probabilities
RIDGE = 1e-4  # on the weights: a constant predictor gets none
SAMPLE = 2**23  # entries of a table of images and classes from which theta is learned, at most
SMALL_SAMPLE = 2**21  # the same for a, b, u and w, which are a few numbers
KEPT = 16  # classes of an image that have a share in the prototypes
ANSWER_WEIGHT = 3.0  # of an answered image in the prototypes
FOLDS = 5  # of the images that were drawn to check
PRIOR_ANSWERS = 10.0  # precision of the prior of the weights that are fitted to answers
MIN_RATIO = 1.35  # nats: a likelihood-ratio test of one weight, significant at 10 %
TINY = 1e-9
FUSED = "fused"
OTHER = "eyes_"  # begin of the name of another image model's gain, before its number

# Of the permutation test.
N_PERMUTATIONS = 999  # so that the smallest p-value is 0.001
MAX_IMAGES, MIN_IMAGES = 4096, 1024  # in the test, where there are as many
MAX_PRODUCTS = 2**28  # of images, D and C: it decides between the two
SEED = 0


@dataclass(frozen=True)
class Posterior:
    """Probabilities of classes: of each image the KEPT largest, which sum to 1."""

    classes: torch.Tensor  # [N, K] int32
    shares: torch.Tensor  # [N, K] float32; 0 for an image of which nothing is known yet
    n_classes: int
    weights: torch.Tensor  # [N] float64 of images in the prototypes

    @classmethod
    def of(
        cls, table: Callable[[slice], torch.Tensor], n_classes: int, weights: torch.Tensor
    ) -> Self:
        """Keep the largest probabilities of N images, of which `table` returns some rows [n, C]."""
        n, k = len(weights), min(KEPT, n_classes)
        kept = cls(torch.zeros(n, k, dtype=torch.int32), torch.zeros(n, k), n_classes, weights)
        for rows in parts(n):
            classes, shares = best_classes(table(rows), k)
            kept.classes[rows] = classes.int()
            kept.shares[rows] = (shares / shares.sum(dim=1, keepdim=True).clamp(min=TINY)).float()
        return kept

    def table(self, rows: Rows) -> torch.Tensor:
        """Return weighted probabilities [n, C] float64."""
        shares = self.shares[rows].double() * self.weights[rows, None]
        table = shares.new_zeros(len(shares), self.n_classes)
        return table.scatter_(1, self.classes[rows].long(), shares)

    def sums(self, rows: slice, x: torch.Tensor) -> torch.Tensor:
        """Return sums [C, D] of x [n, D] float64 by the shares of these rows in the classes."""
        classes = self.classes[rows].long()
        owners = torch.arange(len(x))[:, None].expand_as(classes)
        table = torch.sparse_coo_tensor(
            torch.stack([classes.flatten(), owners.flatten()]),
            (self.shares[rows].double() * self.weights[rows, None]).flatten(),
            (self.n_classes, len(x)),
            check_invariants=True,
        )
        return table @ x


@dataclass(frozen=True)
class PermutationTest:
    """How far votes agree with the images, in standard deviations over permutations."""

    images: float  # with similarities of CLIP's image features
    zero_shot: float  # with the zero-shot scores
    p_value: float  # of the sum of all statistics
    others: tuple[float, ...] = ()  # with similarities of other models' image features
    p_values: tuple[float, ...] = ()  # of the statistics of these models alone

    @property
    def significant(self) -> bool:
        """Whether no permutation agreed as well."""
        return self.p_value <= 1 / (N_PERMUTATIONS + 1)

    @property
    def informative(self) -> list[int]:
        """Numbers of the other models with which no permutation agreed as well."""
        return [i for i, p in enumerate(self.p_values) if p <= 1 / (N_PERMUTATIONS + 1)]


def corroborate(
    images: CalibratedFeatures,
    votes: Votes,
    sample: torch.Tensor,
    others: Sequence[CentredFeatures] = (),
) -> PermutationTest:
    """Test without labels whether votes carry information about their images.

    The statistics are standardised over the permutations and summed:

    - for each image model, sum_{i != j} <x_i, x_j> <v_i, v_j>, the Hilbert-Schmidt independence
      criterion with linear kernels (Gretton et al. 2005), x features and v votes about their means;
    - sum_i <z_i, v_i>, z zero-shot probabilities.

    Images are a sample [n] of those with votes, of which a part may be enough.
    """
    if len(sample) == 0:
        return PermutationTest(0.0, 0.0, 1.0, (0.0,) * len(others), (1.0,) * len(others))
    models = (images, *others)
    width = sum(len(model.mean) for model in models)
    size = min(MAX_IMAGES, max(MIN_IMAGES, MAX_PRODUCTS // (len(images.texts) * width)))
    sample = sample[:: -(-len(sample) // size)]
    features = [model.centred[sample].double() for model in models]
    norms = [x.square().sum(dim=1) for x in features]
    zero_shot = images.probabilities(sample)
    permuted = (votes.permuted or (lambda rows: votes.probabilities(rows).__getitem__))(sample)

    def statistics(order: torch.Tensor) -> list[float]:
        cast = permuted(order)
        cast = cast - cast.mean(dim=0)
        own = cast.square().sum(dim=1)
        found = [
            ((x.T @ cast).square().sum() - norm @ own).item()
            for x, norm in zip(features, norms, strict=True)
        ]
        return [found[0], (zero_shot * cast).sum().item(), *found[1:]]

    draw = torch.Generator().manual_seed(SEED)
    orders = [torch.randperm(len(sample), generator=draw) for _ in range(N_PERMUTATIONS)]
    table = torch.tensor(
        [statistics(order) for order in (torch.arange(len(sample)), *orders)], dtype=torch.float64
    )  # [1 + N_PERMUTATIONS, 1 + M]
    spread = table[1:].std(dim=0)
    standard = (table - table[1:].mean(dim=0)) / torch.where(spread > 0, spread, torch.inf)
    columns = torch.cat([standard.sum(dim=1, keepdim=True), standard[:, 2:]], dim=1)
    as_large = (columns[1:] >= columns[0]).sum(dim=0).tolist()
    p_value, *p_values = ((1 + number) / (1 + N_PERMUTATIONS) for number in as_large)
    by_images, by_scores, *by_others = standard[0].tolist()
    return PermutationTest(by_images, by_scores, p_value, tuple(by_others), tuple(p_values))


@dataclass(frozen=True)
class FusionParameters:
    """What was learned of predictors and votes."""

    test: PermutationTest
    confusion: torch.Tensor  # [C, C] theta; no rows without votes that carry information
    zero_shot: float = 1.0  # a
    images: tuple[float, ...] = (0.0,)  # b, of CLIP and of each other model
    texts: float = 0.0  # w
    explained_share: float = 0.0  # u
    votes: float = 1.0  # exponent of the vote
    by_answers: float | None = None  # exponent of q beside a vote, if it was fitted

    @property
    def weights(self) -> torch.Tensor:
        """Return [1 + M] a and b."""
        return torch.tensor([self.zero_shot, *self.images], dtype=torch.float64)

    @property
    def independence(self) -> float:
        """Return the exponent of q beside a vote: 1 - u^4, unless answers decide it."""
        if self.by_answers is not None:
            return self.by_answers
        return 1 - self.explained_share**INDEPENDENCE

    def classes(self, votes: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of classes [n, C] by votes [n, C] alone."""
        if not len(self.confusion):
            return votes
        return vote_log_likelihood(votes, self.confusion).softmax(dim=1)


class CheckedLabels(NamedTuple):
    """Labels of the J images drawn to check them, each learned without the image's answer."""

    confidence: torch.Tensor  # [J] float32
    right: torch.Tensor  # [J] bool: by the answers


@dataclass(frozen=True)
class Fusion:
    """Fused labels. Weights are logits of centred features, the joint ones of every model."""

    parameters: FusionParameters
    labels: torch.Tensor  # [N] the likeliest class
    confidence: torch.Tensor  # [N] float32, its probability
    individual_labels: dict[str, torch.Tensor]  # [N] by "zero_shot" and by CLIP's "images" alone
    head: torch.Tensor  # [N] the class by `weights`, without the image's own part
    weights: torch.Tensor  # [C, D] float64: a z + b s of CLIP
    gains: dict[str, float]  # log-likelihood of the votes over their mean, by predictors
    joint_head: torch.Tensor  # [N] the class by `joint_weights`, without the image's own part
    joint_weights: tuple[torch.Tensor, ...]  # [C, D] float64 of each model
    # FUSED labels, and those of classifiers by the names of their files, if answers check them.
    checked: Mapping[str, CheckedLabels] = field(default_factory=dict)


class Prototypes:
    """Prototypes of classes by one posterior, of the images by each model and of their texts."""

    def __init__(
        self,
        images: CalibratedFeatures,
        posterior: Posterior,
        others: Sequence[CentredFeatures] = (),
        text_features: Callable[[Rows], torch.Tensor] | None = None,
    ) -> None:
        self.images, self.posterior, self.text_features = images, posterior, text_features
        self.models: tuple[CentredFeatures, ...] = (images, *others)
        n_classes = len(images.texts)
        self.sums = [images.texts.new_zeros(n_classes, len(m.mean)) for m in self.models]
        self.text_sums = torch.zeros_like(images.texts)
        for rows in parts(len(images.centred)):
            for model, sums in zip(self.models, self.sums, strict=True):
                sums += posterior.sums(rows, model.centred[rows].double())
            if text_features is not None:
                self.text_sums += posterior.sums(rows, text_features(rows))

    def predictors(self, rows: Rows) -> list[torch.Tensor]:
        """Return z and s of each model, [n, C] each: the predictors of the votes."""
        table = self.posterior.table(rows)
        scores = [
            SHARPNESS * own_part_left_out(model.centred[rows].double(), table, sums)
            for model, sums in zip(self.models, self.sums, strict=True)
        ]
        return [self.images.zero_shot(rows), *scores]

    def text_scores(self, rows: Rows) -> torch.Tensor | None:
        """Return t [n, C], 0 for an image without caption; None where no image has one."""
        if self.text_features is None:
            return None
        texts, table = self.text_features(rows), self.posterior.table(rows)
        return SHARPNESS * own_part_left_out(texts, table, self.text_sums)

    def head(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Return a z + sum_m b_m s_m as logits [C, D] of centred features of the first models."""
        heads = []
        for weight, sums in zip(weights[1:], self.sums, strict=False):
            lengths = sums.norm(dim=1, keepdim=True).clamp(min=TINY)
            heads.append(weight * (SHARPNESS * sums / lengths))
        heads[0] = weights[0] * self.images.texts + heads[0]
        return heads


def own_part_left_out(
    x: torch.Tensor, table: torch.Tensor, prototypes: torch.Tensor
) -> torch.Tensor:
    """Return products [n, C] of rows with L2-normalised prototypes, each without the row's part.

    Prototypes are sums [C, D] of rows x [n, D] by their shares in a table [n, C].
    """
    products, own = x @ prototypes.T, x.square().sum(dim=1, keepdim=True)
    squares = prototypes.square().sum(dim=1) - 2 * table * products + table.square() * own
    return (products - table * own) / squares.clamp(min=1e-6).sqrt()


class LabelModel:
    """The model of the labels while it is learned."""

    def __init__(
        self, images: CalibratedFeatures, votes: Votes, others: Sequence[CentredFeatures] = ()
    ) -> None:
        self.n, self.n_classes = len(images.centred), len(images.texts)
        self.sample = _spaced(votes.has.nonzero()[:, 0], self.n_classes, SAMPLE)
        test = corroborate(images, votes, self.sample, others)
        start = votes.probabilities if test.significant else images.probabilities
        if not test.significant:
            votes = Votes(torch.zeros(self.n, dtype=torch.bool), votes.probabilities)
            self.sample = self.sample[:0]
        self.images, self.votes, self.others = images, votes, others
        # Without votes, answers tell which image models are of use.
        self.used = test.informative if test.significant else list(range(len(others)))
        nothing, weights = torch.empty(0, self.n_classes), (0.0,) * (1 + len(others))
        no_rows = torch.empty(0, dtype=torch.long)
        self.answers = label_sources.LabelledRows(self.n, no_rows, nothing.double(), no_rows > 0)
        self.parameters = FusionParameters(test, nothing, images=weights)
        # Of the next round, and of the last one, from which the parameters were learned.
        self.prototypes = self.last = self._prototypes(start)

    def _prototypes(self, table: Callable[[slice], torch.Tensor]) -> Prototypes:
        """Return the prototypes by a posterior of which `table` returns some rows [n, C]."""
        weights = torch.where(self.answers.place >= 0, ANSWER_WEIGHT, 1.0).double()
        return self._of_used_models(Posterior.of(table, self.n_classes, weights))

    def _of_used_models(self, posterior: Posterior) -> Prototypes:
        used = [self.others[i] for i in self.used]
        return Prototypes(self.images, posterior, used, self.votes.text_features)

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
        is_first = not len(self.answers.rows) and not self.parameters.test.significant

        def table(rows: slice) -> torch.Tensor:
            before = self.prototypes.posterior.table(rows) * (not is_first)
            found = answers.replace(rows, (before + TINY).log()).exp()
            return found * (before.any(dim=1) | (answers.place[rows] >= 0))[:, None]

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
        self.parameters = self._fit_to_answers(self.parameters if is_light else self._learn())
        self.prototypes = self._prototypes(lambda rows: self.log_posterior(rows).exp())

    def _learn(self) -> FusionParameters:
        """Return the likeliest parameters on a sample of the images with votes or answers."""
        answers, sample, test = self.answers, self.sample, self.parameters.test
        small = _spaced(torch.arange(len(sample)), self.n_classes, SMALL_SAMPLE)
        if len(answers.rows):
            sample = sample[small]
            sample = torch.cat([sample[answers.place[sample] < 0], answers.taught])
            small = torch.arange(len(sample))
        predictors, votes = self.last.predictors(sample), self.votes.probabilities(sample)
        targets = answers.at_end(votes)
        overall = targets.mean(dim=0)
        some, cast = [table[small] for table in predictors], targets[small]
        weights, share = fit_mixture(some, cast, overall)
        confusion, texts = self.parameters.confusion, 0.0
        if test.significant:
            base = share * torch.eye(self.n_classes, dtype=torch.float64) + (1 - share) * overall
            confusion = confusion if len(confusion) else base
            for _ in range(EM_STEPS):
                predicted = answers.at_end(pool(predictors, weights).softmax(dim=1))
                # Expected counts of votes by class, [C, C].
                seen = votes / (predicted @ confusion).clamp(min=TINY)
                counts = confusion * (predicted.T @ seen)
                confusion = counts + PRIOR / max(share, TINY) ** 2 * base
                confusion = confusion / confusion.sum(dim=1, keepdim=True)
                n_known = len(answers.truth)
                weights = fit_weights(some, cast, weights, confusion=confusion, n_known=n_known)
            scores = self.last.text_scores(sample[small])
            if scores is not None:
                predicted = answers.at_end(pool(some, weights).softmax(dim=1))
                both = [vote_log_likelihood(votes[small], confusion), scores]
                texts = fit_weights(both, predicted)[1].item()
        zero_shot, *images = weights.tolist()
        return FusionParameters(test, confusion, zero_shot, tuple(images), texts, share)

    def _fit_to_answers(self, parameters: FusionParameters) -> FusionParameters:
        """Return parameters whose exponents make the answers about images with votes likely."""
        has = self.votes.has[self.answers.taught]
        rows, truth = self.answers.taught[has], self.answers.truth[has]
        if not len(rows):
            return parameters
        factors = [
            pool(self.last.predictors(rows), parameters.weights),
            vote_log_likelihood(self.votes.probabilities(rows), parameters.confusion),
        ]
        prior = [parameters.independence, 1.0]
        texts = self.last.text_scores(rows)
        if texts is not None:
            factors, prior = [*factors, texts], [*prior, parameters.texts]
        centre = torch.tensor(prior, dtype=torch.float64)
        precision = PRIOR_ANSWERS / len(truth)
        found = fit_weights(factors, truth, centre, centre=centre, precision=precision)
        exponent, vote, *text = found.tolist()
        return replace(parameters, by_answers=exponent, votes=vote, texts=sum(text))

    def log_posterior(self, rows: Rows) -> torch.Tensor:
        """Return log fused(c) [n, C], normalised, in which answers replace the posterior."""
        return self.answers.replace(rows, self.predicted_log_posterior(rows))

    def predicted_log_posterior(
        self, rows: Rows, predictors: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """Return log fused(c) [n, C] by predictors, by default the last ones, and votes alone."""
        parameters, has = self.parameters, self.votes.has[rows, None]
        predictors = predictors or self.last.predictors(rows)
        if not self.is_informed:
            return predictors[0]
        scores = pool(predictors, parameters.weights)
        scores = torch.where(has, parameters.independence * scores, scores)
        if len(parameters.confusion):
            votes = self.votes.probabilities(rows)
            likelihood = vote_log_likelihood(votes, parameters.confusion)
            scores = scores + parameters.votes * likelihood * has
        texts = self.last.text_scores(rows) if parameters.texts else None
        if texts is not None:
            scores = scores + parameters.texts * texts
        return scores.log_softmax(dim=1)

    def learn(self, rounds: int) -> dict[str, float]:
        """Learn from votes or answers in some rounds, and return the gains of the predictors.

        While an image model explains too little of the votes, the rounds begin again without the
        one that explains least.
        """
        start, parameters = self.prototypes.posterior, self.parameters
        while True:
            for _ in range(rounds):
                self.step()
            sample = self.small_sample
            if not len(sample):
                return {}
            votes = self.votes.probabilities(sample)
            gained, ratios = gains(self.last.predictors(sample), votes, self.used)
            useless = min(ratios, key=ratios.__getitem__, default=None)
            if useless is None or ratios[useless] >= MIN_RATIO:
                return gained
            self.used = [number for number in self.used if number != useless]
            self.prototypes, self.parameters = self._of_used_models(start), parameters

    @property
    def small_sample(self) -> torch.Tensor:
        """Return the images from which a few numbers are learned."""
        return _spaced(self.sample, self.n_classes, SMALL_SAMPLE)

    def fused(self) -> Fusion:
        """Learn in ROUNDS rounds, and return the labels and the heads by their prototypes."""
        gained = self.learn(ROUNDS)
        parameters, own = self.parameters, self._own_weights()
        labels, zero_shot, images, head, joint = torch.empty(5, self.n, dtype=torch.long)
        confidence = torch.empty(self.n)
        for rows in parts(self.n):
            predictors = self.last.predictors(rows)
            zero_shot[rows], images[rows] = (table.argmax(dim=1) for table in predictors[:2])
            posterior = self.predicted_log_posterior(rows, predictors)
            best = self.answers.replace(rows, posterior).exp().max(dim=1)
            confidence[rows] = best.values.float()
            # An image of none of the classes has confidence 0.
            labels[rows] = torch.where(best.values > 0, best.indices, zero_shot[rows])
            predictors = self.prototypes.predictors(rows)
            head[rows] = pool(predictors[:2], own).argmax(dim=1)
            joint[rows] = pool(predictors, parameters.weights).argmax(dim=1)
        individual = {"zero_shot": zero_shot} | ({"images": images} if self.is_informed else {})
        weight_of = dict(zip(self.used, parameters.images[1:], strict=True))
        others = (weight_of.get(i, 0.0) for i in range(len(self.others)))
        return Fusion(
            parameters=replace(parameters, images=(parameters.images[0], *others)),
            labels=labels,
            confidence=confidence,
            individual_labels=individual,
            gains=gained,
            head=head,
            weights=self.prototypes.head(own)[0],
            joint_head=joint,
            joint_weights=self._of_all(self.prototypes.head(parameters.weights)),
        )

    def _own_weights(self) -> torch.Tensor:
        """Return the weights [2] by which CLIP alone predicts what all models together found."""
        if not self.parameters.weights[2:].any():
            return self.parameters.weights[:2]
        sample = self.small_sample if len(self.sample) else self.answers.taught
        targets = self.log_posterior(sample).exp()
        return fit_weights(self.prototypes.predictors(sample)[:2], targets)

    def _of_all(self, heads: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the heads of CLIP, of the used models, and zeros for the other models."""
        head_of = dict(zip(self.used, heads[1:], strict=False))
        zeros = (heads[0].new_zeros(self.n_classes, len(model.mean)) for model in self.others)
        return heads[0], *(head_of.get(i, zero) for i, zero in enumerate(zeros))


def fuse(
    images: CalibratedFeatures,
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


def cross_fit(model: LabelModel, labelled: label_sources.LabelledRows) -> dict[str, CheckedLabels]:
    """Label the images drawn to check, each without its answer and those of its fold."""
    drawn = labelled.drawn.nonzero()[:, 0]
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(SEED))
    found: dict[str, CheckedLabels] = {}
    for fold in order.chunk(FOLDS):
        use = torch.ones(len(labelled.rows), dtype=torch.bool)
        use[drawn[fold]] = False
        fusion = model.answered(labelled.select(use)).fused()
        rows, models = labelled.rows[drawn[fold]], (model.images, *model.others)
        predicted = {FUSED: (fusion.labels[rows], fusion.confidence[rows])}
        predicted["image_prototypes"] = _classified(models, (fusion.weights,), rows)
        if model.others:
            predicted["image_prototypes_eyes"] = _classified(models, fusion.joint_weights, rows)
        for name, (labels, confidence) in predicted.items():
            is_right = torch.zeros(len(drawn), dtype=torch.bool)
            checked = found.setdefault(name, CheckedLabels(torch.zeros(len(drawn)), is_right))
            checked.confidence[fold] = confidence.float()
            shares = labelled.shares[drawn[fold]].gather(1, labels[:, None])
            checked.right[fold] = shares[:, 0] > 0
    return found


def _classified(
    models: Sequence[CentredFeatures], weights: Sequence[torch.Tensor], rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best class of each image and its probability, by heads of one or more models."""
    logits = [m.centred[rows].double() @ w.T for m, w in zip(models, weights, strict=False)]
    best = torch.stack(logits).sum(dim=0).softmax(dim=1).max(dim=1)
    return best.indices, best.values


def prototypes_by_zero_shot(images: CalibratedFeatures) -> torch.Tensor:
    """Return the head z + (1 - u^4) b s [C, D] of centred features, with z as the votes."""
    n, n_classes = len(images.centred), len(images.texts)
    ones = torch.ones(n, dtype=torch.float64)
    start = Prototypes(images, Posterior.of(images.probabilities, n_classes, ones))
    sample = _spaced(torch.arange(n), n_classes, SMALL_SAMPLE)
    cast = images.probabilities(sample)
    weights, share = fit_mixture(start.predictors(sample)[1:], cast, cast.mean(dim=0))
    own = (1 - share**INDEPENDENCE) * weights[0]
    return start.head(torch.stack([torch.ones_like(own), own]))[0]


def _spaced(rows: torch.Tensor, n_classes: int, entries: int) -> torch.Tensor:
    """Return evenly spaced rows, whose table of classes has about so many entries."""
    return rows[:: -(-max(1, len(rows)) * n_classes // entries)]


def pool(tables: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of tables [n, C]."""
    first, *others = (weight * table for weight, table in zip(weights, tables, strict=True))
    pooled: torch.Tensor = sum(others, first)
    return pooled


def vote_log_likelihood(votes: torch.Tensor, confusion: torch.Tensor) -> torch.Tensor:
    """Return log sum_k v_k theta_ck [n, C], the log-likelihood of votes [n, C] by class."""
    return (votes @ confusion.T + TINY).log()


def fit_mixture(
    predictors: Sequence[torch.Tensor], votes: torch.Tensor, overall: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Return the weights and the share u with which u softmax(pool) + (1 - u) r is likeliest.

    Predictors are tables [n, C] like the votes, and r is [C].
    """

    def loss(free: torch.Tensor) -> torch.Tensor:
        share = free[-1].sigmoid()
        mixed = share * pool(predictors, free[:-1]).softmax(dim=1) + (1 - share) * overall
        return _cross_entropy(votes, mixed) + RIDGE * free[:-1].square().sum()

    free = _minimise(loss, torch.zeros(len(predictors) + 1, dtype=torch.float64), len(predictors))
    return free[:-1], free[-1].sigmoid().item()


def fit_weights(
    predictors: Sequence[torch.Tensor],
    targets: torch.Tensor,
    start: torch.Tensor | None = None,
    *,
    confusion: torch.Tensor | None = None,
    n_known: int = 0,
    centre: torch.Tensor | float = 0.0,
    precision: float = RIDGE,
) -> torch.Tensor:
    """Return the weights with which softmax(pool), through a confusion [C, C], is likeliest.

    Predictors and targets are tables [n, C]. The last `n_known` targets are classes and not votes.
    The weights have a normal prior.
    """

    def loss(free: torch.Tensor) -> torch.Tensor:
        predicted = pool(predictors, free).softmax(dim=1)
        seen = predicted if confusion is None else predicted @ confusion
        if n_known:
            seen = torch.cat([seen[:-n_known], predicted[-n_known:]])
        return _cross_entropy(targets, seen) + precision * (free - centre).square().sum()

    first = torch.zeros(len(predictors), dtype=torch.float64) if start is None else start
    return _minimise(loss, first, len(first))


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
        return _cross_entropy(votes, mixed).item()

    blind, both = _cross_entropy(votes, overall.expand_as(votes)).item(), loss(predictors)
    found = {"both": both, "zero_shot": loss(predictors[:1]), "images": loss(predictors[1:2])}
    ratios = {}
    for place, number in enumerate(others, start=2):
        found[f"{OTHER}{number}"] = loss(predictors[place : place + 1])
        without = [*predictors[:place], *predictors[place + 1 :]]
        ratios[number] = len(votes) * (loss(without) - both)
    return {name: blind - value for name, value in found.items()}, ratios


def _cross_entropy(targets: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows [n, C], in nats."""
    return -(targets * (predicted + TINY).log()).sum(dim=1).mean()


def _minimise(
    loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, n_weights: int
) -> torch.Tensor:
    """Minimise a loss by L-BFGS, the first entries being weights, none of them negative."""
    active = torch.ones_like(start)
    while True:
        found = _descend(lambda free: loss(free * active), start * active) * active
        if not (found[:n_weights] < 0).any():
            return found
        active[found[:n_weights].argmin()] = 0  # and the other predictors are fitted again


def _descend(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    free = start.requires_grad_()
    optimiser = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        value = loss(free)
        value.backward()
        return value.item()

    optimiser.step(closure)
    return free.detach()

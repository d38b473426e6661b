"""Flags of a run, which tables show beside its method."""

AUDITED = "audited"
# Each flag of a run, and its footnote in a table.
FLAGS = {
    "supervised": "reads the labels of the training images: an upper bound, not an unsupervised "
    "method",
    "ours": "not in the paper",
    AUDITED: "its accuracy was estimated from a person's answers about images drawn at random",
    "collapsed": "predictions collapsed in training: fewer than half of the classes are predicted, "
    "or hardly any prediction agrees with its pseudo-label",
    "diverged": "the training diverged at the learning rate that was found: this is the untrained "
    "model",
}
FAILED = frozenset({"collapsed", "diverged"})  # flags of trainings that are never chosen

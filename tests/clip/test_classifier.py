import errno
import os

import pytest
import torch

from latteclip.clip import classifier as classifiers
from latteclip.clip.classifier import (
    Classifier,
    FeatureMemmap,
)

N, C, D = 23, 5, 3


def test_the_best_classes_come_first_ties_by_class():
    images, classifier = torch.randint(-1, 2, (23, D)).float(), torch.ones(C, D)
    labels, best = classifiers.classify(images, Classifier.of(classifier), 3)
    assert torch.equal(labels, torch.arange(3).expand(23, 3))
    assert torch.equal(best, images.sum(dim=1, keepdim=True).expand(23, 3))


# --- features ------------------------------------------------------------------------------------


def test_a_full_disk_is_noticed_before_a_row_is_written(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(classifiers.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        FeatureMemmap(N, D)

import errno

import pytest

from latteclip.core.errors import full_disk

WRAPPED = RuntimeError("wrapped")
WRAPPED.__cause__ = OSError(errno.ENOSPC, "No space left", "/disk/x")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/disk/x"), "/disk/x"),
        (WRAPPED, "/disk/x"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk"),
    ],
)
def test_a_full_disk_is_one_sentence_that_names_the_file(error, named):
    sentence = full_disk(error)
    assert named in sentence
    assert "\n" not in sentence

import errno

import pytest

from latteclip.core.errors import full_disk


def raised(error, cause=None):
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/disk/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/disk/x"),
        raised(RuntimeError("wrapped"), OSError(errno.ENOSPC, "No space left", "/disk/x")),
    ],
)
def test_a_full_disk_is_one_sentence_that_names_the_file(error):
    sentence = full_disk(error)
    assert "/disk/x" in sentence
    assert "\n" not in sentence


def test_libraries_without_numbers_of_errors_are_understood():
    error = RuntimeError("I/O error: No space left on device (os error 28)")
    assert full_disk(error)

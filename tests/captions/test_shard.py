import pytest

from latteclip.captions.requests import Shard, shard_of
from latteclip.core.errors import UserError


def test_the_shard_of_an_image_does_not_depend_on_other_images():
    names = [f"{number}.png" for number in range(1000)]
    counts = [sum(shard_of(name, 4) == shard for name in names) for shard in range(1, 5)]
    assert all(abs(count - 250) < 60 for count in counts)
    assert shard_of("7.png", 4) == shard_of("7.png", 4)


@pytest.mark.parametrize("text", ["0/2", "3/2", "a/b"])
def test_a_shard_that_cannot_be_is_refused(text):
    with pytest.raises(UserError, match=text):
        Shard.parse(text)

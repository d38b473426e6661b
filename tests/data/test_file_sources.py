import pytest

from latteclip.core.errors import UserError
from latteclip.data import file_sources


@pytest.mark.parametrize("spec", [{"file": "x"}, {"hf": "a/b"}, {"drive": "x", "file": "y"}, {}])
def test_a_source_of_no_known_kind(spec):
    with pytest.raises(UserError, match="is not one of"):
        file_sources.parse(spec)

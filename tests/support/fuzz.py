"""Random and damaged bytes, and tests that go on with them for a time."""

import copy
import itertools
import json
import os
import resource
import signal
import time

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from latteclip.core.errors import UserError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))  # of each test; 0: a single round
LONGEST = 120  # seconds of one case
MEMORY = 2**30  # bytes that all cases of one test may add


def fuzzed(**strategies):
    """A test over random cases: one round of them in seconds, or rounds until the time is over.

    The number of a round is its seed: the same command finds the same again.
    """

    def decorate(body):
        # Not `wraps`: pytest would take the strategies' names for fixtures.
        def run():
            before, until = _peak(), time.monotonic() + SECONDS
            for number in itertools.count():
                seed(number)(given(**strategies)(body))()
                if time.monotonic() >= until:
                    break
            assert _peak() - before < MEMORY

        run.__name__, run.__doc__ = body.__name__, body.__doc__
        return pytest.mark.fuzz(run)

    return decorate


def check(read, expected=None):
    """Run `read` on one case, and compare its result with `expected` where damage cannot change it.

    Return the result, or None where the reader refuses the case.
    """
    signal.alarm(LONGEST)  # a reader that hangs ends the process
    try:
        found = read()
    except UserError as error:
        assert len(str(error).splitlines()) == 1, error
        return None
    finally:
        signal.alarm(0)
    if expected is not None:
        assert found == expected
    return found


def _peak():
    """The most memory that this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def damaged(whole):
    """Strategy: some bytes of `whole` changed, cut off, taken out or put in; or other bytes."""
    places = st.integers(0, len(whole) - 1)
    changes = st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4)
    cuts = st.tuples(places, st.integers(0, 40), st.binary(max_size=40))
    return st.one_of(
        st.just(whole),
        changes.map(lambda found: _changed(whole, found)),
        cuts.map(lambda cut: whole[: cut[0]] + cut[2] + whole[cut[0] + cut[1] :]),
        places.map(lambda place: whole[:place]),
        st.binary(max_size=300),
    )


def _changed(whole, changes):
    content = bytearray(whole)
    for place, mask in changes:
        content[place] ^= mask
    return bytes(content)


NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-9, 9), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(["/etc/passwd", "../..", "hf-hub:me/model", "local-dir:/tmp", "\x00"]),
)


@st.composite
def twisted(draw, text):
    """A JSON text in which one value is another one, missing, or has company."""
    values = json.loads(text)
    changed = copy.deepcopy(values)
    places = list(_places(changed))
    holder, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "replace":
        holder[key] = draw(NASTY)
    elif how == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw(st.text(max_size=12))] = draw(NASTY)
    else:
        holder.append(draw(NASTY))
    return json.dumps(changed)


def _places(value):
    """(object or list, key) of every value inside."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])

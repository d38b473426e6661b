import datetime
import tempfile
from pathlib import Path

from hypothesis import strategies as st
from support.fuzz import check, damaged, fuzzed
from support.tiny import ROOT

from latteclip.config import layers, yaml_files
from latteclip.config.configuration import Configuration, as_json
from latteclip.core.plain_values import refuse_unfit

FILES = layers.defaults(project=None)
TEXT = (ROOT / "config" / "config.yaml").read_bytes()
SINGLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 10**400, -1, 0, 1]),
    st.floats(),
    st.text(),
    st.sampled_from(["", "\n", "\0", "x" * 300, "[", "{", "NaN", "2024-13-45", "0x_", "demo"]),
    st.dates(),
    st.binary(max_size=8),
)
KEYS = st.one_of(st.text(max_size=8), st.integers(), st.none(), st.just(datetime.date.today()))
VALUES = st.recursive(
    SINGLE,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=5,
)


def places(values, above=()):
    """The keys that lead to each section and value."""
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def at(place, value):
    """Keys inside each other around a value."""
    for key in reversed(place):
        value = {key: value}
    return value


def used(files, given):
    """What rules take from a configuration, which must be JSON that every reader reads."""
    found = Configuration(files, given)
    for dataset in found.datasets:
        sections = {name: found.section(name, dataset) for name in ("clip", "finetune", "scores")}
        methods = [found.method(method, dataset) for method in found.methods]
        as_json([sections, methods]).encode()
        found.candidates(dataset), found.caption_kinds(dataset), found.has_votes(dataset)
    return found.hub_models("clip"), found.hub_models("captioner"), found.sharded()


@fuzzed(content=damaged(TEXT))
def test_a_damaged_file_is_a_configuration_or_one_sentence(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_bytes(content)
        check("configuration file", lambda: used(layers.merge(FILES, yaml_files.read(file)), {}))


@fuzzed(
    place=st.sampled_from(list(places(FILES))),
    value=VALUES,
    stands=st.sampled_from(["file", "given"]),
)
def test_any_value_at_any_key_is_a_configuration_or_one_sentence(place, value, stands):
    new = at(place, value)

    def read():
        if stands == "given":
            return used(FILES, new)
        refuse_unfit(new, "Configuration file")
        return used(layers.merge(FILES, new), {})

    check("configuration value", read)

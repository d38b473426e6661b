import pytest
from support.tiny import ROOT

from latteclip.config.methods import ENGINES, OBJECTIVES, VOTER_KINDS, VOTERS
from latteclip.core import tables


@pytest.mark.parametrize(
    ("folder", "names", "shared"),
    [
        ("captions/engines", set(ENGINES), {"processors", "server"}),
        (
            "labels/voters",
            {*VOTERS, *(kind.module for kind in VOTER_KINDS.values())},
            {"base"},
        ),
        (
            "train/objectives",
            {one.module for one in OBJECTIVES.values() if one.module},
            {"base"},
        ),
    ],
)
def test_every_record_has_a_module_and_every_module_a_record(folder, names, shared):
    files = {path.stem for path in (ROOT / "latteclip" / folder).glob("*.py")}
    assert files - shared - {"__init__"} == names


def test_every_voter_has_its_columns():
    for name in VOTERS:
        assert {f"{name}_label", f"{name}_confidence"} <= set(tables.FUSED_LABELS.names)


def test_a_method_that_reads_labels_is_never_chosen():
    chosen = {name for name, one in OBJECTIVES.items() if one.can_be_chosen}
    assert set(OBJECTIVES) - chosen == {"flyp_supervised"}

from snakemake.cli import parse_config

from latteclip.core import run_options

TYPED = [
    'clip={"model": "x", "pretrained": null}',
    'scores={"max_images": 500, "share": 0.25}',
    'class_synonyms={"null": ["007", "1e5", "-0.50", "true"]}',
]


def test_a_printed_command_has_null_and_numbers_as_a_person_types_them():
    """Snakemake makes texts of them, where they are nested."""
    given = parse_config(TYPED)
    printed = list(run_options.pairs(given))
    assert parse_config(printed) == given
    assert {*TYPED[:2]} < {*printed}

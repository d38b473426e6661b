import re
from collections import defaultdict

from support.tiny import ROOT

from latteclip.core import makers

FILE = re.compile(r'"(results/\{dataset\}/[^"]+\.(?:parquet|json|safetensors))"')


def outputs():
    """(rule, file) of every table, classifier and JSON that a rule of the workflow writes."""
    for file in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        for rule in re.split(r"^(?=rule |use rule )", file.read_text("utf-8"), flags=re.MULTILINE):
            name = re.match(r"(?:use rule \w+ as |rule )(\w+)", rule)
            written = re.search(r"\n    output:\n(.*?)\n    \w+:", rule, re.DOTALL)
            for path in FILE.findall(written[1]) if name and written else ():
                kinds = ("images", "groups") if "{kind}" in path else ("",)
                yield from ((name[1], path.replace("{kind}", kind)) for kind in kinds)


def named(path):
    """The rules that a message on a damaged file names."""
    found = re.search(r"the rule (.+) makes it again$", makers.remedy(path))
    return frozenset(found[1].split(" or ")) if found else frozenset()


def test_messages_name_the_rules_that_write_a_file():
    written = defaultdict(set)
    for rule, path in outputs():
        if "/shards/" not in path:  # which the workflow removes at its end
            written[named(path)].add(rule)
    assert {rules: set(rules) for rules in written} == written
    assert written.keys() == {frozenset(rules) for rules in makers.MAKERS.values()}


def test_of_another_file_no_rule_is_named():
    assert makers.remedy("elsewhere/x.parquet") == "delete it and rerun its stage"

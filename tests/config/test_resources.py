import re

import yaml
from support.tiny import ROOT

from latteclip.config import resources
from latteclip.data import loader


def test_memory_grows_with_the_images_and_with_each_attempt():
    assert resources.memory(16_000, 0, 1) == 16_000
    assert resources.memory(48_000, 0, 3) == 108_000


def test_memory_has_room_for_all_parts_of_batches_that_are_loaded():
    of_a_process = resources.memory(0, 1, 1)
    assert of_a_process * 1e6 >= 200e6 + (loader.AHEAD + 1) * loader.PART
    assert resources.memory(6_000, 8, 1) == 6_000 + 8 * of_a_process


def test_slurm_sends_each_rule_with_a_gpu_to_a_partition_with_gpus():
    """A default resource cannot see the GPUs of its job, so the profile lists the rules."""
    rules = "".join(
        path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk"))
    )
    with_gpu, parents = set(), {}
    for rule in re.split(r"^(?=(?:use )?rule )", rules, flags=re.MULTILINE)[1:]:
        parent, name = re.match(r"(?:use rule (\w+) as|rule) (\w+)", rule).groups()
        parents[name] = parent
        if re.search(r"^ +gpu=", rule, re.MULTILINE):
            with_gpu.add(name)
    for _ in parents:  # a rule may use one that uses another
        with_gpu |= {name for name, parent in parents.items() if parent in with_gpu}
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    partitions = {
        rule: each["slurm_partition"] for rule, each in profile["set-resources"].items()
    }
    assert partitions == dict.fromkeys(with_gpu, "'gpu'")

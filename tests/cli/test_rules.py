"""Inputs, parameters and resources of jobs, with a stand-in for Snakemake's workflow."""

import sys
from types import SimpleNamespace

import pytest
from snakemake.exceptions import WorkflowError
from snakemake.iocontainers import Wildcards

from latteclip.cli import machine
from latteclip.cli.rules import Rules
from latteclip.config import layers, resources

DEMO = Wildcards(fromdict={"dataset": "demo", "method": "flyp"})


@pytest.fixture
def functions(monkeypatch):
    """Makes the functions on a machine of so many cores and free GPUs, or on a cluster."""
    monkeypatch.chdir(layers.ROOT)

    def make(cores=8, gpus=0, cluster=False, **config):
        monkeypatch.setattr(machine.os, "cpu_count", lambda: cores)
        monkeypatch.setattr(machine.gpus, "visible", lambda: gpus)
        monkeypatch.setattr(machine, "free_gpus", lambda: max(1, gpus))
        limits = {}
        modifier = SimpleNamespace(
            is_main_snakefile=lambda: True,
            path_modifier=SimpleNamespace(apply_default_storage=lambda path: path),
        )
        workflow = SimpleNamespace(
            modifier=modifier,
            storage_settings=SimpleNamespace(default_storage_provider=None),
            configfiles=[],
            output_settings=SimpleNamespace(verbose=True, quiet=()),
            is_main_process=True,
            remote_exec=False,
            resource_settings=SimpleNamespace(nodes=4 if cluster else None, cores=cores),
            global_resources=limits,
            register_resource=lambda name, n: limits.update(
                {name: SimpleNamespace(value=n)}
            ),
            execution_settings=SimpleNamespace(),
            dryrun=False,
            use_threads=cluster,
        )
        here = machine.Machine(workflow)
        given = {"dataset": "demo", "method": "flyp", **config}
        return Rules(machine.load(workflow, given, here), here)

    return make


TRAINING, CAPTIONING = resources.trainings_at_once, resources.captionings_at_once
SHARDED = {"shards": 4, "method": "zero_shot,latteclip_no_image_description"}


@pytest.mark.parametrize(
    ("machine", "sharing", "threads"),
    [
        ({"cores": 4, "gpus": 1}, TRAINING, 4),  # its trainings run one after the other
        ({"cores": 8, "gpus": 2, "seeds": 2}, TRAINING, 4),  # one on each GPU
        ({"cores": 64}, TRAINING, 6),  # as many as are configured
        ({"cores": 4}, None, 4),
        ({"cores": 16, "gpus": 4, **SHARDED}, CAPTIONING, 4),
        ({"cores": 16, "gpus": 1, **SHARDED}, CAPTIONING, 6),  # one after the other
        ({"cores": 2, "cluster": True}, None, 6),  # whatever the login node has
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_jobs_of_a_machine_share_its_cores_and_those_of_a_cluster_do_not(
    functions, machine, sharing, threads
):
    compute = {"threads": 6, "shards": machine.pop("shards", 1)}
    assert functions(compute=compute, **machine).threads(sharing)(DEMO) == threads


def test_gpus_are_asked_for_where_there_are_some(functions):
    wanted = {"captioner": {"engine": "vllm", "tensor_parallel_size": 4}}
    for one, n in (({}, 0), ({"gpus": 4}, 4), ({"cluster": True}, 4)):
        found = functions(**one, **wanted)
        count = found.of(resources.captioner_gpus, "asker")
        assert found.gpus(count)(DEMO) == n
        assert found.cores_per_gpu(count)(DEMO, 8) == 2


def test_a_mistaken_configuration_is_snakemake_s_error(functions, monkeypatch):
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)  # restored afterwards
    with pytest.raises(WorkflowError, match="demmo"):
        functions(dataset="demmo")

"""Inputs, parameters and resources of jobs, with a stand-in for Snakemake's workflow."""

import sys
from types import SimpleNamespace

import pytest
from snakemake.exceptions import WorkflowError
from snakemake.iocontainers import Wildcards

from latteclip.cli import rule_functions
from latteclip.cli.rule_functions import RuleFunctions
from latteclip.config import job_resources, layers

DEMO = Wildcards(fromdict={"dataset": "demo", "method": "flyp"})


@pytest.fixture
def functions(monkeypatch):
    """Makes the functions on a machine of so many cores and free GPUs, or on a cluster."""
    monkeypatch.chdir(layers.ROOT)

    def make(cores=8, gpus=0, cluster=False, **config):
        monkeypatch.setattr(rule_functions, "_cores", lambda: cores)
        monkeypatch.setattr(rule_functions, "_sees_gpus", lambda: gpus > 0)
        monkeypatch.setattr(rule_functions, "free_gpus", lambda: max(1, gpus))
        resources = {}
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
            global_resources=resources,
            register_resource=lambda name, n: resources.update(
                {name: SimpleNamespace(value=n)}
            ),
            execution_settings=SimpleNamespace(),
            dryrun=False,
            use_threads=cluster,
        )
        return RuleFunctions(workflow, {"dataset": "demo", "method": "flyp", **config})

    return make


THREADS = {"finetune": 6, "caption": 6, "evaluate": 6}
SHARDED = {"captions": {"shards": 4}, "method": "zero_shot,latteclip_no_image_description"}


@pytest.mark.parametrize(
    ("machine", "stage", "threads"),
    [
        ({"cores": 4, "gpus": 1}, "finetune", 4),  # its trainings run one after the other
        ({"cores": 64, "gpus": 2, "seeds": 2}, "finetune", 32),  # one on each GPU
        ({"cores": 16, "gpus": 8, "seeds": 9}, "finetune", 6),  # as many as are configured
        ({"cores": 64}, "finetune", 6),
        ({"cores": 4}, "evaluate", 4),
        ({"cores": 16, "gpus": 4, **SHARDED}, "caption", 4),
        ({"cores": 16, "gpus": 1, **SHARDED}, "caption", 6),  # one after the other
        ({"cores": 2, "cluster": True}, "evaluate", 6),  # whatever the login node has
    ],
    ids=str,
)
def test_jobs_of_a_machine_share_its_cores_and_those_of_a_cluster_do_not(
    functions, machine, stage, threads
):
    assert functions(threads=THREADS, **machine).threads_of(stage)(DEMO) == threads


def test_gpus_are_asked_for_where_there_are_some(functions):
    wanted = {"captioner": {"engine": "vllm", "tensor_parallel_size": 4}}
    for machine, n in (({}, 0), ({"gpus": 4}, 4), ({"cluster": True}, 4)):
        found = functions(**machine, **wanted)
        count = found.given(job_resources.captioner_gpus, "dataset")
        assert found.gpus(count)(DEMO) == n
        assert found.cores_per_gpu(count)(DEMO, 8) == 2


def test_a_mistaken_configuration_is_snakemake_s_error(functions, monkeypatch):
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)  # restored afterwards
    with pytest.raises(WorkflowError, match="demmo"):
        functions(dataset="demmo")

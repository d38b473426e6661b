"""Names and sentences of libraries that their manuals do not promise.

An update of a pin that lacks one of them fails here, and not on a GPU.
"""

import importlib
import inspect

import pytest

# By module: the name there, or of a class. Each comment is a likely replacement, not tried.
NAMES = [
    # vllm serve and the engine for servers.
    ("vllm", "LLM.enqueue"),
    ("vllm.v1.engine.llm_engine", "LLMEngine.step"),
    # Prompts of one token each, with `logprobs=-1`.
    ("vllm", "SamplingParams.logprob_token_ids"),
    # ValueError and RuntimeError alone.
    ("vllm.exceptions", "VLLMClientError"),
    ("vllm.exceptions", "VLLMServerError"),
    # `torch.version.cuda is None`.
    ("vllm.platforms", "current_platform.is_cpu"),
    # A cache of the prefix for each choice.
    ("transformers", "DynamicCache.batch_repeat_interleave"),
    # `AutoConfig.for_model`.
    ("transformers", "CONFIG_MAPPING"),
    # Texts with all their padding.
    ("open_clip.transformer", "text_global_pool"),
    ("open_clip.transformer", "TextTransformer"),
    # huggingface_hub.hf_hub_download.
    ("open_clip.pretrained", "download_pretrained_from_hf"),
    # A list of the architectures here.
    ("open_clip.hf_configs", "arch_dict"),
]
# Arguments of vllm.LLM that go to EngineArgs, and are not in its signature.
ARGUMENTS = ("config_format", "load_format", "limit_mm_per_prompt", "mm_processor_cache_gb")


@pytest.mark.parametrize(("module", "path"), NAMES)
def test_a_name_that_no_manual_promises_is_there(module, path):
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)


def test_vllm_takes_the_arguments_that_the_engine_gives():
    from vllm import EngineArgs

    assert {*ARGUMENTS} <= {*inspect.signature(EngineArgs).parameters}


# Attributes of Snakemake's objects that latteclip/cli reads or replaces.
ATTRIBUTES = {
    "snakemake.workflow:Workflow": (
        *("dag", "dryrun", "execution_settings", "global_resources", "is_main_process"),
        *("modifier", "output_settings", "overwrite_configfiles", "persistence"),
        *(
            "remote_exec",
            "resource_settings",
            "scheduler",
            "storage_settings",
            "use_threads",
        ),
    ),
    "snakemake.settings.types:ResourceSettings": ("_parsed_default_resources",),
    "snakemake.modules:WorkflowModifier": ("is_main_snakefile", "path_modifier"),
    "snakemake.path_modifier:PathModifier": ("modify", "replace_prefix"),
    "snakemake.dag:DAG": (
        *("dependencies", "ignore_incomplete", "jobs", "needrun", "needrun_jobs"),
        *("reason", "summary"),
    ),
    "snakemake.scheduling.job_scheduler:JobScheduler": ("failed", "running"),
    "snakemake.persistence:PersistenceBase": ("started",),
}
# What Snakemake says, by which `messages.py` and `status.py` leave lines out.
SENTENCES = [
    ("snakemake.common", "Nothing to be done"),
    ("snakemake.dag", "Reasons:"),
    ("snakemake.jobs", "Missing output files"),
    ("snakemake.jobs", "Input files updated by another job"),
    ("snakemake.jobs", "Params have changed since last execution"),
    ("snakemake.logging", "DefaultStreamHandler"),
    ("snakemake.exceptions", " in file "),
    ("snakemake.scheduling.job_scheduler", "Look above for error"),
    ("snakemake.workflow", "At least one job did not"),
    ("snakemake_executor_plugin_slurm", "SLURM sbatch failed"),
]


@pytest.mark.parametrize("place", ATTRIBUTES)
def test_snakemake_has_the_attributes_that_the_command_line_reads(place):
    importlib.import_module("snakemake.cli")
    module, name = place.split(":")
    found = getattr(importlib.import_module(module), name)
    text = inspect.getsource(found)
    gone = [
        one
        for one in ATTRIBUTES[place]
        if not hasattr(found, one) and f"self.{one}" not in text
    ]
    assert not gone, f"{place} has no {gone}; latteclip/cli needs another way"


@pytest.mark.parametrize(("module", "sentence"), SENTENCES)
def test_snakemake_says_what_the_command_line_looks_for(module, sentence):
    importlib.import_module("snakemake.cli")
    text = inspect.getsource(importlib.import_module(module))
    assert sentence in text, (
        f"{module} no longer says {sentence!r}; see latteclip/cli/messages.py"
    )

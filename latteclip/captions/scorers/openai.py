"""Letters from a server that speaks OpenAI's chat completions."""

import dataclasses

from latteclip.captions.answers import Answer
from latteclip.captions.engines.openai import URL, OpenaiCaptioner
from latteclip.captions.letters import letter_of
from latteclip.captions.replies import Place, Reply
from latteclip.captions.requests import Request, choices_of
from latteclip.captions.scores import Scores, as_answer, summed
from latteclip.core.errors import UserError

TOP = 20  # tokens that a server names at most


class OpenaiScorer(OpenaiCaptioner):
    """Reads the letters among the tokens that the server names for the first place of its answer.

    One that is not among them gets the smallest log-probability that was named, which its own
    cannot be above.
    """

    _has_told = False  # whether any reply had log-probabilities

    def _ask(self, request: Request) -> Answer:
        choices, rows, first = choices_of(request), [], []
        for prompt in choices.prompts:
            asked = dataclasses.replace(request, prompt=prompt)
            reply = self._complete(asked, max_tokens=1, logprobs=True, top_logprobs=TOP)
            if isinstance(reply, Answer):
                return reply
            place = self._first(reply)
            if place is None:
                return Answer("", "error", None, "the reply has no log-probabilities")
            rows.append(_letters(choices.texts, place))
            first.append(place.token)
        return as_answer(Scores(tuple(rows), tuple(first)), len(rows))

    def _first(self, reply: Reply) -> Place | None:
        """What the server says of the first token of its answer; None: nothing of this one.

        Raises:
            UserError: it said nothing of any answer so far.
        """
        if reply.first is None and not self._has_told:
            raise UserError(
                f"The server at {self._url} ({URL}) tells no log-probabilities (top_logprobs), "
                "which letters need; use another server, or captioner.engine vllm or transformers."
            )
        self._has_told = True
        return reply.first


def _letters(letters: tuple[str, ...], place: Place) -> tuple[float, ...]:
    """Log-probabilities of the letters from the tokens that the server names for one place."""
    found: dict[str, list[float]] = {letter: [] for letter in letters}
    for token, value in place.likely:
        letter = letter_of(token, letters)
        if letter is not None:
            found[letter].append(value)
    smallest = min(value for _, value in place.likely)
    return tuple(summed(named) if named else smallest for named in found.values())

"""Explanations of vLLM's failures, from its exceptions and the output of its processes."""

import contextlib
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence

import pydantic

from latteclip.core.terminal import one_line

LINES = 400  # of the output that are remembered: several tracebacks
# Before a line of the log of an engine's process: its name, then level, time and place.
LOG_PREFIX = re.compile(r"(\(\S+( \S+)* pid=\d+\) )?([A-Z]+ \S+ \S+ \[\S+\] )?")
# A line that says what went wrong: of Python, of a compiler.
TELLING = re.compile(r"[\w.]*(Error|Exception): |.*\berror: ")
# An error of one process that says no more than that another one has failed.
ELSEWHERE = re.compile("root cause|stack trace", re.IGNORECASE)
MEMORY = (
    "raise captioner.gpu_memory_utilization or free the GPU, lower captioner.max_model_len or "
    "captioner.batch_size, set captioner.quantization, or spread the model over GPUs with "
    "captioner.tensor_parallel_size"
)
# Parts of vLLM's errors, in lower case, and what to do about them; the first that fits counts.
REMEDIES = {
    "memory for the cache|kv cache|gpu memory utilization|out of memory": MEMORY,
    "maximum model length|maximum context length|max_model_len": (
        "set captioner.max_model_len to what the model can read, and large enough for picture, "
        "prompt and captioner.max_new_tokens; captioner.square_side or a lower "
        "captioner.max_image_side makes pictures shorter"
    ),
    "not supported for now|model architectures|does not recognize this architecture": (
        "this vLLM does not know the model: set another captioner.model, or captioner.engine to "
        "transformers"
    ),
    "deserializing header|incomplete metadata": (
        "a file of weights is damaged: delete it and fetch the model again"
    ),
    "nvcc|ninja|cuda_home|python.h|c compiler": (
        "install a C compiler and Python's headers, as latteclip doctor says, and do not set "
        "VLLM_USE_FLASHINFER_SAMPLER"
    ),
}


class EngineOutput:
    """Passes the output of the engine's processes on, and remembers its last lines.

    The processes inherit a pipe in place of their standard streams. A thread reads it as long as
    they run, and writes to the standard error.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES)
        self._caught_up = threading.Event()
        reader, self._writer = os.pipe()
        threading.Thread(target=self._pass_on, args=(reader, os.dup(2)), daemon=True).start()

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Collect what this process and those that it starts in the body print.

        These processes are heard also after the body.
        """
        _flush()
        before = {number: os.dup(number) for number in (1, 2)}
        for number in before:
            os.dup2(self._writer, number)
        try:
            yield
        finally:
            _flush()
            for number, saved in before.items():
                os.dup2(saved, number)
                os.close(saved)
            self.lines()

    def lines(self) -> list[str]:
        """Return the last lines that the processes printed, once all is read from the pipe."""
        self._caught_up.clear()
        os.write(self._writer, b"\0")
        self._caught_up.wait()
        return [*self._lines]

    def _pass_on(self, reader: int, stderr: int) -> None:
        rest = b""
        while chunk := os.read(reader, 2**16):
            text = chunk.replace(b"\0", b"")
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(stderr, text)
            *lines, rest = re.split(rb"[\r\n]+", rest + text)
            self._lines.extend(line.decode(errors="replace") for line in lines)
            if b"\0" in chunk:
                self._caught_up.set()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it
            stream.flush()


def explained(error: BaseException, printed: Sequence[str] = ()) -> str:
    """Return one sentence: the telling line, and which key of the configuration to change.

    Args:
        error: of vLLM.
        printed: the last lines that its engine printed. They tell more where the error only says
            that the engine's process failed.
    """
    raised = _lines_of(error)
    bare = (line[prefix.end() :] for line in printed if (prefix := LOG_PREFIX.match(line)))
    others = [line for line in bare if TELLING.match(line) and not ELSEWHERE.search(line)][::-1]
    is_elsewhere = any(map(ELSEWHERE.search, raised))
    lines = [*others, *raised] if is_elsewhere else [*raised, *others]
    for marks, remedy in REMEDIES.items():
        for line in lines:
            if re.search(marks, line.lower()):
                return f"{one_line(line).rstrip('.')}; {remedy}."
    return one_line(lines[0]) if lines else repr(error)


def _lines_of(error: BaseException) -> list[str]:
    """Return the lines of an error's text; those of pydantic without its additions."""
    if isinstance(error, pydantic.ValidationError):
        values = (
            [*map(str, e["loc"]), e["msg"].removeprefix("Value error, ")] for e in error.errors()
        )
        return [": ".join(each) for each in values]
    return [line.strip() for line in str(error).splitlines() if line.strip()]

"""Explanations of vLLM's failures, from its exceptions and the output of its processes."""

import contextlib
import fcntl
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from latteclip.core.terminal import one_line

LINES = 400  # of the output that are remembered: several tracebacks
PIPE = 2**20  # bytes that may wait to be read
# Before a line of the log of an engine's process: its name, then level, time and place.
LOG_PREFIX = re.compile(r"(\(\S+( \S+)* pid=\d+\) )?([A-Z]+ \S+ \S+ \[\S+\] )?")
# A line that says what went wrong: of Python, of a compiler.
TELLING = re.compile(r"[\w.]*(Error|Exception): |.*\berror: ")
# An error of one process that says no more than that another one has failed.
ELSEWHERE = ("root cause", "stack trace")
PYDANTIC = re.compile(r"\d+ validation errors? for ")
# Parts of vLLM's errors, in lower case, and what to do about them; the first that fits counts.
REMEDIES = (
    (
        ("no available memory for the cache", "kv cache is needed", "larger than the available kv"),
        "raise captioner.gpu_memory_utilization, lower captioner.max_model_len, or spread the "
        "model over GPUs with captioner.tensor_parallel_size",
    ),
    (
        ("less than desired gpu memory utilization",),
        "something else uses this GPU: lower captioner.gpu_memory_utilization, or free the GPU",
    ),
    (
        ("out of memory",),
        "lower captioner.batch_size or captioner.max_model_len, set captioner.quantization, or "
        "spread the model over GPUs with captioner.tensor_parallel_size",
    ),
    (
        ("maximum model length", "maximum context length", "max_model_len"),
        "set captioner.max_model_len to what the model can read, and large enough for picture, "
        "prompt and captioner.max_new_tokens; captioner.square_side or a lower "
        "captioner.max_image_side makes pictures shorter",
    ),
    (
        ("not supported for now", "model architectures", "does not recognize this architecture"),
        "this vLLM does not know the model: set another captioner.model, or captioner.engine to "
        "transformers",
    ),
    (
        ("not a valid model identifier", "repository not found", "is not a local folder", "404"),
        "check captioner.model and captioner.revision, and HF_TOKEN for a model that asks for it",
    ),
    (
        ("bfloat16", "compute capability"),
        "this GPU lacks that arithmetic: set captioner.dtype to float16",
    ),
    (("quantization",), "set captioner.quantization to what the model's files are, or to null"),
    (
        ("world size", "tensor parallel", "tensor_parallel"),
        "set captioner.tensor_parallel_size to a number of GPUs that this machine has and that "
        "divides the model's attention heads",
    ),
    (
        ("deserializing header", "incomplete metadata"),
        "a file of weights is damaged: delete it and fetch the model again",
    ),
    (
        ("could not find nvcc", "ninja build failed", "cuda_home"),
        "set VLLM_USE_FLASHINFER_SAMPLER to 0 or do not set it; other kernels that vLLM compiles "
        "need a CUDA toolkit of the version of torch",
    ),
    (
        ("python.h", "failed to find c compiler"),
        "install a C compiler and Python's headers, as latteclip doctor says",
    ),
    (("': -9",), "the system killed it, mostly because the machine's memory ran out"),
)


class EngineOutput:
    """Passes the output of the engine's processes on, and remembers its last lines.

    The processes inherit a pipe in place of their standard streams. A thread reads it as long as
    they run, and writes to the standard error.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES)
        self._caught_up = threading.Event()
        reader, self._writer = os.pipe()
        with contextlib.suppress(OSError):  # the limit of an account
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, PIPE)
        self._stderr = os.dup(2)
        threading.Thread(target=self._pass_on, args=(reader,), daemon=True).start()

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
            self._catch_up()

    def lines(self) -> list[str]:
        """Return the last lines that the processes printed so far."""
        self._catch_up()
        return [*self._lines]

    def _catch_up(self) -> None:
        """Wait until all is read that stands in the pipe."""
        self._caught_up.clear()
        os.write(self._writer, b"\0")
        self._caught_up.wait()

    def _pass_on(self, reader: int) -> None:
        rest = b""
        while chunk := os.read(reader, 2**16):
            text = chunk.replace(b"\0", b"")
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(self._stderr, text)
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
    others = [line for line in map(_without_prefix, reversed(printed)) if TELLING.match(line)]
    others = [line for line in others if not _is_elsewhere(line)]
    lines = [*others, *raised] if any(map(_is_elsewhere, raised)) else [*raised, *others]
    for marks, remedy in REMEDIES:
        for line in lines:
            if any(mark in line.lower() for mark in marks):
                return f"{one_line(line).rstrip('.')}; {remedy}."
    return one_line(lines[0]) if lines else repr(error)


def _lines_of(error: BaseException) -> list[str]:
    """Return the lines of an error's text; those of pydantic without its additions."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    if not lines or not PYDANTIC.match(lines[0]):
        return [line.strip() for line in lines]
    found, field = [], ""
    for line in lines[1:]:
        if not line.startswith(" "):
            field = f"{line}: "
        elif line.startswith("  ") and " [type=" in line:
            message = line.strip().partition(" [type=")[0]
            found.append(field + message.removeprefix("Value error, "))
    return found


def _without_prefix(line: str) -> str:
    prefix = LOG_PREFIX.match(line)
    return line[prefix.end() :] if prefix else line


def _is_elsewhere(line: str) -> bool:
    return any(words in line.lower() for words in ELSEWHERE)

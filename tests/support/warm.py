"""Commands of the environment by processes that have imported what they need, seconds sooner.

Such a process forks for each command that it is asked for. The child takes the arguments,
environment, folder and streams of whoever asks, and runs the command's own script; nothing of this
package was imported before. As a command this is such a process: `python -m support.warm SCRIPT`.
That of vLLM runs the Python code that is the first argument.
"""

import atexit
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

from filelock import FileLock
from support.warm_command import FOLDER, MODULE, NUMBER, PYTHON, ask, ended

TESTS = Path(__file__).parents[1]
OWNER = "WARM_OWNER"  # the process whose end is theirs
# What the commands of a script import, in this order.
COMMANDS = {
    "snakemake": ("pydantic.main", "snakemake.cli"),
    "latteclip": (
        *("numpy", "PIL.Image", "pyarrow.parquet", "torch", "torchvision", "open_clip"),
        *("transformers.generation.utils", "transformers.models.auto.processing_auto"),
        *(
            "transformers.models.llava.modeling_llava",
            "transformers.models.clip.modeling_clip",
        ),
        *(
            "transformers.models.llama.modeling_llama",
            "transformers.models.llava.processing_llava",
        ),
        *("pydantic.main", "pyarrow.compute", "pandas", "scipy.stats", "jinja2"),
        *("pillow_heif", "sqlite3"),
    ),
}
FORK = multiprocessing.get_context("fork")
IMPORTED = COMMANDS | {"vllm": ("vllm.entrypoints.openai.api_server",)}


def run(script, arguments, environment, folder, stages=False):
    """The exit status of a script and what it said; the `stages` of Snakemake may be warm too."""
    if stages:
        environment = environment | {PYTHON: str(interpreter())}
    reading, writing = os.pipe()
    server = _connect(script)
    with os.fdopen(reading, encoding="utf-8") as output:
        with Path(os.devnull).open() as nothing:
            ask(
                server, arguments, environment, folder, [nothing.fileno(), writing, writing]
            )
        os.close(writing)
        said = output.read()
    with server:
        return ended(server), said


# By environment: its commands that a warm process runs. In `stages` Snakemake is none of them.
WARM = {"environment": ("python", *IMPORTED), "stages": ("latteclip",)}


def interpreter(name="environment"):
    """Python of an environment of WARM, in which processes of its commands are forked."""
    for script in COMMANDS:
        _connect(script).close()
    folder = Path(os.environ[FOLDER]) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _write_environment(folder, WARM[name])
    return folder / "bin" / "python"


def command(script):
    """Path of a command that a warm process runs; it takes signals as that process would.

    Where it is killed, that process ends a moment later, and only then does its output.
    """
    _connect(script).close()
    return str(interpreter().with_name(script))


def _connect(script):
    """A connection to the process for a script, which is started if it is not there."""
    folder = Path(os.environ[FOLDER])
    path = folder / script
    with FileLock(folder / f"{script}.lock"):
        if not path.exists():
            process = subprocess.Popen(
                [sys.executable, "-m", "support.warm", script],
                stdin=subprocess.DEVNULL,
                # Who starts it may be read to its end, which this process outlives.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=TESTS,
                env={
                    name: value
                    for name, value in os.environ.items()
                    if name != "PYTHONPATH"
                },
            )
            while not path.exists():
                assert process.poll() is None, f"{script} cannot be imported"
                time.sleep(0.01)
    server = socket.socket(socket.AF_UNIX)
    server.connect(str(path))
    return server


def _write_environment(folder, warm):
    """That of the tests, but for commands that ask the warm processes."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    base = Path(sys.base_prefix) / "bin"
    (folder / "pyvenv.cfg").write_text(
        f"home = {base}\ninclude-system-site-packages = false\n"
    )
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    source = (TESTS / "support" / "warm_command.py").read_text()
    (commands / "python").symlink_to(sys.executable)
    for name in warm:
        (commands / name).unlink(missing_ok=True)
        (commands / name).write_text(f"#!{sys.executable} -IS\n{source}")
        (commands / name).chmod(0o755)


def _serve(path):
    """Fork for each request until the owner ends; returns in the child what it is to be."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    owner = os.pidfd_open(int(os.environ[OWNER]))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        os.rename(f"{path}.new", path)
        while True:
            if owner in select.select([listener, owner], [], [])[0]:
                os._exit(0)
            connection, _ = listener.accept()
            with connection:
                if not os.fork():
                    return _begin(connection)


def _begin(connection):
    """Returns in the child that is to be a command; whoever asked hears of its end, or ends it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, *_ = socket.recv_fds(connection, NUMBER, 3)
    if not length:
        os._exit(0)
    request = connection.recv(int.from_bytes(length), socket.MSG_WAITALL)
    pid = os.fork()
    if not pid:
        connection.close()
        return streams, *json.loads(request)
    for stream in streams:
        os.close(stream)
    connection.sendall(pid.to_bytes(NUMBER))
    child = os.pidfd_open(pid)
    if child not in select.select([child, connection], [], [])[0]:
        os.kill(pid, signal.SIGKILL)  # nobody waits any more
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(NUMBER, signed=True))
    os._exit(0)


def _become(script, streams, arguments, environment, folder):
    """Make this process the one that the script would be."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # the first may seek, and a pipe may not
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(script), *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # wherever the tests run
    sys.path[0] = str(script.parent)
    sys.path[1:1] = [
        path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path
    ]


def _main(name):
    for module in IMPORTED[name]:
        importlib.import_module(module)
    if name == "snakemake":
        from snakemake import cli

        cli.get_argument_parser()  # imports the plugins
    gc.freeze()
    script = Path(sys.executable).with_name(name)
    _become(script, *_serve(Path(os.environ[FOLDER]) / name))
    sys.executable = os.environ.pop(PYTHON, sys.executable)
    try:
        if name == "vllm":
            sys.modules["__main__"] = types.ModuleType("__main__")
            # vLLM spawns its engine, and that its worker. Forks need not import it again.
            multiprocessing.get_context = lambda _=None: FORK
            exec(sys.argv.pop(1), vars(sys.modules["__main__"]))
        elif module := os.environ.pop(MODULE, ""):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(script), run_name="__main__")
        status = 0
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            raise
        status = error.code or 0
    _end(status)


def _end(status):
    """Do what Python does at its end, but for freeing all modules, which takes 0.3 s."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _main(sys.argv[1])

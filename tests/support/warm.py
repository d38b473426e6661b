"""Runs of Snakemake by a process that has imported it already, a second of CPU time sooner.

That process forks for each run. The child takes the arguments, environment, folder and output of
the run and does what the command `snakemake` does; nothing of this package was imported before.
"""

import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
NUMBER = 8  # bytes of a number between the two processes


def run(arguments, environment, folder):
    """The exit status of `snakemake` with such arguments in a folder, and what it said."""
    server = _server()
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as output:
        request = json.dumps([arguments, environment, str(folder)]).encode()
        socket.send_fds(server, [len(request).to_bytes(NUMBER)], [writing])
        os.close(writing)
        server.sendall(request)
        said = output.read()
    status = server.recv(NUMBER)
    assert status, "the process that runs Snakemake has ended"
    return int.from_bytes(status, signed=True), said


@cache
def _server():
    """A socket to the process, which ends when this one does."""
    ours, theirs = socket.socketpair()
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "support.warm", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # buffers what is said, as a pipe does
            cwd=TESTS,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
    return ours


def _serve(server):
    """Fork for each request, in turn; returns in the child, which is then told what to be."""
    while True:
        length, outputs, *_ = socket.recv_fds(server, NUMBER, 1)
        if not length:
            sys.exit()
        request = server.recv(int.from_bytes(length), socket.MSG_WAITALL)
        pid = os.fork()
        if not pid:
            server.close()
            return outputs[0], *json.loads(request)
        os.close(outputs[0])
        _, status = os.waitpid(pid, 0)
        server.sendall(os.waitstatus_to_exitcode(status).to_bytes(NUMBER, signed=True))


def _become(output, arguments, environment, folder):
    """Make this process the one that the command would start."""
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    command = Path(sys.executable).with_name("snakemake")
    sys.argv = [str(command), *arguments]
    sys.path[0] = str(command.parent)
    sys.path[1:1] = environment["PYTHONPATH"].split(os.pathsep)


if __name__ == "__main__":
    import jsonschema  # noqa: F401
    from snakemake import cli

    cli.get_argument_parser()  # imports the plugins
    _become(*_serve(socket.socket(fileno=int(sys.argv[1]))))
    cli.main()

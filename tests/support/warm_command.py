"""A command of the environment, which a warm process runs (see `warm`); started with `python -IS`.

Signals that would end it end that process, and it ends as that one does. As `python` it is
`python -m snakemake` or `python -m latteclip`, or else Python itself. The program of
`latteclip status` is Snakemake too.
"""

import json
import os
import signal
import socket
import sys

NUMBER = 8  # bytes of a number between the processes
FOLDER = "WARM_FOLDER"  # of the sockets
PYTHON = "WARM_PYTHON"  # what a command takes to be its interpreter
STATUS = "latteclip.cli.status"
MODULE = "WARM_MODULE"  # that Snakemake runs in place of its own


def ask(server, arguments, environment, folder, streams):
    """Ask for a command with such file descriptors for stdin, stdout and stderr; its process."""
    request = json.dumps([arguments, environment, str(folder)]).encode()
    socket.send_fds(server, [len(request).to_bytes(NUMBER)], streams)
    server.sendall(request)
    return int.from_bytes(server.recv(NUMBER))


def ended(server):
    """The exit status of the command once it has ended, negative for a signal."""
    status = server.recv(NUMBER)
    assert status, "the warm process has ended"
    return int.from_bytes(status, signed=True)


if __name__ == "__main__":
    path, *arguments = sys.argv
    name = os.path.basename(path)
    environment = dict(os.environ)
    if name == "python":
        named = arguments[1:] if arguments[:1] == ["-u"] else arguments
        if named[:2] == ["-m", STATUS]:
            environment[MODULE], named[1] = STATUS, "snakemake"
        if named[:2] not in (["-m", "snakemake"], ["-m", "latteclip"]):
            os.execv(sys.executable, [path, *arguments])
        _, name, *arguments = named
    if name == "snakemake" or arguments[:1] == ["workflow"]:
        environment[PYTHON] = os.path.join(os.path.dirname(os.path.abspath(path)), "python")
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.path.join(environment[FOLDER], name))
        pid = ask(server, arguments, environment, os.getcwd(), [0, 1, 2])
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, lambda number, _: os.kill(pid, number))
        status = ended(server)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)

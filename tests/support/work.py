"""What worker processes of tests do: a module that they can import by its name."""

import os
import signal

from latteclip.core.errors import UserError


def square(number):
    return number * number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number):
    raise UserError(f"Not {number}.")


def survive(number):
    """Ctrl-C and what a cluster sends reach every process of a job."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), stop)
    return number

"""What worker processes of tests do: a module that they can import by its name."""

import os
import signal
import time


def square(number):
    return number * number


def die_among_many_bytes(number):
    """Of the second task the process dies; the others give more than a pipe takes."""
    time.sleep(0.3)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return bytes(200_000)

"""Refuse a driver that is too old for the pins of envs/cuda.txt, before they are downloaded.

python envs/check_driver.py           # on the machine that is to use the GPU
python envs/check_driver.py --warn    # on a login node, where it is no error
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from latteclip.core import gpus  # noqa: E402  (of this checkout; nothing is installed yet)
from latteclip.core.errors import UserError  # noqa: E402


def main() -> None:
    """Print a sentence where the builds cannot use the GPU, and exit unless it is a warning."""
    pins = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "envs" / "cuda.txt").read_text(), re.M)
    )
    cuda = ".".join(pins["nvidia-cuda-runtime"].split(".")[:2])
    try:
        gpus.refuse_unusable(pins["torch"], cuda)
    except UserError as error:
        if sys.argv[1:] != ["--warn"]:
            sys.exit(f"error: {error}")
        print(f"warning: {error} KIND=cuda was given: going on.", file=sys.stderr)


if __name__ == "__main__":
    main()

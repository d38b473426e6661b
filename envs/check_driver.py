"""Refuse a driver that is too old for the pins of envs/cuda.txt, before they are downloaded.

python envs/check_driver.py
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from latteclip.core import gpus  # noqa: E402  (of this checkout; nothing is installed yet)
from latteclip.core.errors import UserError  # noqa: E402


def main() -> None:
    """Exit with a sentence where the builds cannot use the GPU."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "envs" / "cuda.txt").read_text(), re.M))
    cuda = ".".join(pins["nvidia-cuda-runtime"].split(".")[:2])
    try:
        gpus.refuse_unusable(pins["torch"], cuda)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""axe-core, which looks for what keeps people with a screen reader or a keyboard out of a page."""

import hashlib
import subprocess
import tarfile
from pathlib import Path

import pytest

VERSION = "4.10.3"
SHA256 = "880970c081707360e64f34cea25ff91892f5bc95675b0776925b9709dd8a68bb"  # of axe.min.js
SEVERE = ("serious", "critical")


def script(folder: Path) -> str:
    """The text of axe.min.js, stored in a folder; the test is skipped where it cannot be had."""
    path = folder / f"axe-{VERSION}.min.js"
    if not path.is_file():
        command = ["npm", "pack", f"axe-core@{VERSION}", "--ignore-scripts", "--silent"]
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, timeout=180
            )
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"axe-core cannot be fetched by npm ({error})")
        packed = folder / f"axe-core-{VERSION}.tgz"
        with tarfile.open(packed) as archive:
            path.write_bytes(archive.extractfile("package/axe.min.js").read())
        packed.unlink()
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256, (
        f"{path} is not axe-core {VERSION}"
    )
    return content.decode()


def violations(page, axe: str) -> list[str]:
    """What is serious or critical on a page of Playwright, with its place."""
    page.evaluate(axe)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    assert found["passes"]
    return [
        f"{one['id']}: {one['help']} at {node['target']}"
        for one in found["violations"]
        if one["impact"] in SEVERE
        for node in one["nodes"]
    ]

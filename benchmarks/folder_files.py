"""How long it takes to see that no file of a folder changed, or that times alone did.

    python benchmarks/folder_files.py [--files 100000] [--bytes 1000]

makes class folders of so many files, writes their table as index_images does, and asks for their
state as each start of the workflow does: as they are, and with a new time of each.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from latteclip.data import folder_files


def timed(what: str, folder: Path, table: Path, wanted: str | None) -> str:
    """Print the seconds that the state takes, and return it."""
    start, cpu = time.perf_counter(), time.process_time()
    found = folder_files.state(str(folder), "folders", None, str(table))
    assert wanted in (None, found)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{what}: {seconds:.1f} s by the clock, {cpu:.1f} s of CPU")
    return found


def main() -> None:
    """Make the files and print the seconds of each question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=1_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, table = Path(place) / "photos", Path(place) / "folder_files.parquet"
        for number in range(args.files):
            if number % 1000 == 0:
                of_class = folder / f"class_{number // 1000:05}"
                of_class.mkdir(parents=True)
            (of_class / f"IMG_{number:08}.jpg").write_bytes(os.urandom(args.bytes))
        state = timed(f"{args.files} files, never indexed", folder, table, None)
        found = list(folder_files.files(str(folder), "folders"))
        checksums = [folder_files.checksum(folder / file.name) for file in found]
        folder_files.write(str(table), found, state, checksums)
        print(f"table of the files: {table.stat().st_size / 1e6:.1f} MB")
        timed("nothing changed", folder, table, state)
        for file in found:
            os.utime(folder / file.name)
        timed("each file has a new time", folder, table, state)
        timed("asked again", folder, table, state)


if __name__ == "__main__":
    main()

import sys

import pytest
import try_gpu


def test_the_report_is_one_table_with_warnings_first(tmp_path, monkeypatch):
    def fails():
        raise ValueError("two\nlines | and a bar")

    found = {"good": lambda: (True, "fine"), "bad": fails}
    monkeypatch.setattr(try_gpu, "checks", lambda *_: found)
    report = tmp_path / "report.md"
    monkeypatch.setattr(sys, "argv", ["try_gpu.py", "--report", str(report)])
    with pytest.raises(SystemExit) as end:
        try_gpu.main()
    assert end.value.code == 1
    _, _, first, second = report.read_text().splitlines()
    assert first.startswith("| warning | bad | ValueError: two lines / and a bar |")
    assert second.startswith("| ok | good | fine |")

import json
import shlex

from snakemake import cli as snakemake_cli

from latteclip.core import run_options


def test_the_command_repeats_the_last_run_of_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()
    config = {"image_dir": "my photos", "seeds": 1, "captioner": {"revision": None}}
    run_options.note_options({"mine": "mine", "b": "b"}, config)
    words = shlex.split(run_options.run_command("results/mine", "labels"))
    assert words[:4] == ["snakemake", "--cores", "all", "labels"]
    assert words[4:6] == ["--config", "dataset=mine"]
    given = snakemake_cli.parse_config(words[5:])
    assert given["image_dir"] == "my photos" and given["seeds"] == 1
    assert json.dumps(given["captioner"]) == '{"revision": "null"}'
    run_options.note_options({"b_64": "b"}, {"limit": 64})
    command = run_options.run_command("results/b_64")
    assert command == "snakemake --cores all --config dataset=b limit=64"

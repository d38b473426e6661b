import json

import pytest

from latteclip.config import page_settings


@pytest.mark.parametrize(
    ("methods", "main", "paper"),
    [
        ("zero_shot,latteclip,flyp_supervised", "latteclip", "latteclip"),
        ("latteclip_no_captions,flyp", "flyp", None),
        ("zero_shot,flyp,label_propagation", "flyp", None),
        ("zero_shot", "zero_shot", None),
    ],
)
def test_the_methods_that_have_a_part_of_their_own(configured, methods, main, paper):
    found = configured(method=methods)
    assert page_settings.main_method(found, "demo") == main
    assert page_settings.paper_method(found, "demo") == paper


def test_any_run_with_a_model_may_be_the_chosen_one(configured):
    found = configured(method="zero_shot,image_prototypes,latteclip", seeds="3,1")
    assert page_settings.files_of_runs(found, "demo", "gallery") == [
        "results/demo/image_prototypes/seed0/gallery.parquet",
        "results/demo/latteclip/seed3/gallery.parquet",
        "results/demo/latteclip/seed1/gallery.parquet",
    ]
    assert len(page_settings.files_of_runs(found, "demo", "history")) == 2
    assert len(page_settings.files_of_runs(found, "demo", "metrics")) == 4


def test_pages_of_a_table_of_its_own_have_its_name(configured):
    assert configured().suffix == ""
    found = configured(table={"name": "study"})
    assert found.suffix == "-study"
    assert page_settings.index_results(found)["reports"] == {"demo": "demo/report-study.html"}


def test_benchmarks_follow_shards_and_seeds(configured):
    found = configured(method="flyp", seeds=2, captions={"shards": 2})
    paths = [file["path"] for file in page_settings.benchmarks(found, "demo")]
    assert "results/demo/benchmarks/caption_images-2-of-2.jsonl" in paths
    assert "results/demo/benchmarks/index_images.jsonl" in paths
    assert "results/demo/flyp/seed1/benchmarks/evaluate.jsonl" in paths
    assert len(paths) == len(set(paths)) == 7 + 3 * 2 + 1 + 2 * len(page_settings.OF_RUN)


def test_the_page_is_told_in_the_order_in_which_people_read(configured):
    found = json.loads(page_settings.report_dataset(configured(method="latteclip_fused"), "demo"))
    assert list(found) == ["dataset", "baseline", "main", "paper", "suffix", "config", "benchmarks"]
    told = found["config"]
    assert list(told)[:3] == ["dataset", "seeds", "title"]
    assert list(told)[-2:] == ["threads", "methods"]
    assert next(iter(told["methods"]["latteclip_fused"])) == "like"
    assert told["methods"]["latteclip_fused"]["pseudo_labels"] == "fused"


def test_titles_are_told_where_there_are_any(configured, tmp_path):
    found = configured(dataset="demo,dtd", datasets={"dtd": {"title": ""}})
    titles = page_settings.index_results(found)["titles"]
    assert "demo" in titles and "dtd" not in titles

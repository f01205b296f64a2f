"""Data sets of the hub, tried on folders in the hub's own format: no network, and no code but ours."""

import json

import pytest

datasets = pytest.importorskip("datasets")

from polargrad.lab.lm.sources import KNOWN_DATASETS, open_source  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def folder(tmp_path):
    """A data set as the hub stores it: two parquet shards of a split, and another split."""
    where = tmp_path / "owner" / "essays"
    (where / "data").mkdir(parents=True)
    for shard in range(2):
        rows = [{"text": f"essay {10 * shard + i}", "score": i} for i in range(10)]
        datasets.Dataset.from_list(rows).to_parquet(where / "data" / f"train-0000{shard}-of-00002.parquet")
    datasets.Dataset.from_list([{"text": "a trial", "score": 0}]).to_parquet(
        where / "data" / "test-00000-of-00001.parquet"
    )
    return where


def test_a_folder_in_the_hub_s_format_is_streamed_in_order(folder):
    source = open_source(str(folder))
    assert [document.text for document in source.read(0)] == [f"essay {i}" for i in range(20)]
    assert [document.text for document in source.read(13)] == [f"essay {i}" for i in range(13, 20)]
    assert [document.text for document in open_source(str(folder), split="test").read(0)] == ["a trial"]


def test_its_identity_is_that_of_its_content(folder):
    first = open_source(str(folder)).identity
    assert open_source(str(folder)).identity == first
    assert open_source(str(folder), split="test").identity != first
    datasets.Dataset.from_list([{"text": "another", "score": 0}]).to_parquet(
        folder / "data" / "train-00001-of-00002.parquet"
    )
    assert open_source(str(folder)).identity != first


def test_subsets_are_chosen_by_name(tmp_path):
    where = tmp_path / "set"
    for name in ("small", "large"):
        (where / name).mkdir(parents=True)
        datasets.Dataset.from_list([{"text": f"of {name}"}]).to_parquet(where / name / "part.parquet")
    configurations = [{"config_name": n, "data_files": f"{n}/*.parquet"} for n in ("small", "large")]
    (where / "README.md").write_text("---\nconfigs: " + json.dumps(configurations) + "\n---\n")
    # The card is a text too, and is not what is meant.
    assert [d.text for d in open_source(str(where), subset="large").read(0)] == ["of large"]
    with pytest.raises(ValueError, match="cannot be opened with subset 'huge'"):
        next(open_source(str(where), subset="huge").read(0))


def test_a_missing_field_or_split_is_named(folder):
    with pytest.raises(ValueError, match=r"has no text under 'body' \(it has \['score', 'text'\]\)"):
        next(open_source(str(folder), field="body").read(0))
    with pytest.raises(ValueError, match="split 'validation'"):
        next(open_source(str(folder), split="validation").read(0))


def test_code_that_comes_with_a_data_set_is_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    script = f"import pathlib; pathlib.Path({str(ran)!r}).touch()\n"
    (folder / "essays.py").write_text(script)  # where data sets used to keep their loading script
    with pytest.raises(ValueError, match="scripts are no longer supported"):
        next(open_source(str(folder)).read(0))
    for file in (folder / "data").iterdir():
        file.unlink()
    # Now the script is all there is: it is text like any other.
    assert next(open_source(str(folder)).read(0)).text == script
    assert not ran.exists()


def test_without_a_network_the_error_says_what_to_do():
    with pytest.raises(OSError, match=r"huggingface-cli download --repo-type dataset owner/none .*give FOLDER"):
        next(open_source("owner/none").read(0))


def test_a_data_set_that_is_not_there_is_said_so(monkeypatch):
    def fails(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/none' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(FileNotFoundError, match=r"'owner/none' is not on the hub, or it needs a login"):
        next(open_source("owner/none").read(0))


def test_known_data_sets_have_short_names():
    assert open_source("openwebtext-100k").name == "Elriggs/openwebtext-100k, train"
    for short, (name, subset) in KNOWN_DATASETS.items():
        assert open_source(short).identity == open_source(name).identity == open_source(name, subset=subset).identity
    with pytest.raises(
        FileNotFoundError,
        match=r"no file or folder 'nowhere'.*or one of standard-library, openwebtext-100k, fineweb, fineweb-edu",
    ):
        open_source("nowhere")


def test_without_datasets_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"polargrad\[data\]"):
        next(open_source("owner/none").read(0))

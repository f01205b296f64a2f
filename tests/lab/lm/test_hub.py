"""Data sets of the hub, tried on folders in the hub's own format: no network, and no code but ours."""

import hashlib
import json
import types

import huggingface_hub
import pytest

datasets = pytest.importorskip("datasets")

from polargrad.lab.comparison.comparison import Comparison, run_comparison  # noqa: E402
from polargrad.lab.lm.sources import KNOWN_DATASETS, at_commit, open_source  # noqa: E402
from polargrad.lab.run import runner  # noqa: E402
from polargrad.lab.train import CheckpointError, CheckpointPolicy  # noqa: E402
from tests.runs import StopsAt, tiny_spec  # noqa: E402

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


class Hub:
    """A stand-in for the hub: commits of one data set, each a folder, and what its branches name."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.branches, self.reachable = folder, {}, True
        load = datasets.load_dataset

        def opened(name, subset=None, *, revision=None, **options):
            assert name == "owner/essays"
            return load(str(folder / revision), subset, **options)

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", self.info)
        monkeypatch.setattr(datasets, "load_dataset", opened)

    def commit(self, text):
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        (self.folder / sha).mkdir()
        datasets.Dataset.from_list([{"text": f"{text} {i}"} for i in range(400)]).to_parquet(
            self.folder / sha / "train.parquet"
        )
        self.branches["main"] = sha
        return sha

    def info(self, name, *, revision=None, **_):
        if not self.reachable:
            raise RuntimeError("name or service not known")
        response = types.SimpleNamespace(headers={}, request=None, status_code=404)
        if not name.startswith("owner/e"):
            raise huggingface_hub.errors.RepositoryNotFoundError("no such repository", response=response)
        if (revision or "main") not in self.branches:
            raise huggingface_hub.errors.RevisionNotFoundError("no such revision", response=response)
        return types.SimpleNamespace(sha=self.branches[revision or "main"])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("POLARGRAD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "commits").mkdir()
    return Hub(monkeypatch, tmp_path / "commits")


def first(source):
    return next(source.read(0)).text


def test_a_data_set_is_read_as_of_a_commit(hub):
    old = hub.commit("old")
    source = open_source("owner/essays")
    assert (first(source), source.name) == ("old 0", f"owner/essays@{old[:12]}, train")
    hub.branches["v1"] = old
    new = hub.commit("new")
    assert first(source) == "old 0"
    assert first(open_source("owner/essays")) == "new 0"
    assert first(open_source("owner/essays@v1")) == first(open_source(f"owner/essays@{old}")) == "old 0"
    identities = {text: open_source(text).identity for text in ("owner/essays", "owner/essays@v1")}
    assert identities["owner/essays"] != identities["owner/essays@v1"] == source.identity
    assert at_commit("owner/essays") == f"owner/essays@{new}"
    with pytest.raises(ValueError, match=r"has no 'v2'; give a branch, a tag or a commit"):
        open_source("owner/essays@v2")


def test_without_a_network_a_data_set_is_what_it_was_last(hub):
    hub.reachable = False
    with pytest.raises(OSError, match=r"huggingface-cli download --repo-type dataset owner/essays .*give FOLDER"):
        open_source("owner/essays")
    hub.reachable = True
    commit = hub.commit("old")
    open_source("owner/essays")
    hub.reachable = False
    with pytest.warns(RuntimeWarning, match=f"the hub cannot be reached; owner/essays is read as of {commit}"):
        assert first(open_source("owner/essays")) == "old 0"
    (kept,) = [path for path in (hub.folder.parent / "cache" / "hub").glob("*.json") if "header" not in path.name]
    kept.write_text('{"commit": "../../elsewhere"}')
    with pytest.raises(OSError, match="huggingface-cli download"):
        open_source("owner/essays")


@pytest.mark.filterwarnings("ignore:the hub cannot be reached:RuntimeWarning")
def test_a_run_is_of_the_commit_that_it_began_with(hub, tmp_path):
    old = hub.commit("old and very much longer than it would have to be for a window of tokens")
    spec = tiny_spec("owner/essays", steps=4)
    with pytest.raises(runner.Interrupted):
        runner.run(spec, tmp_path / "run", progress=StopsAt(2), policy=CheckpointPolicy(every_steps=1))
    assert json.loads((tmp_path / "run" / "spec.json").read_text())["objective"]["corpus"] == f"owner/essays@{old}"
    hub.commit("new and very much longer than it would have to be for a window of tokens")
    run = runner.resume(tmp_path / "run", spec)
    assert run.status == "finished"
    assert run.environment["corpus"] == f"owner/essays@{old[:12]}, train"
    again = runner.run(spec, tmp_path / "again")
    assert again.environment["corpus_checksum"] != run.environment["corpus_checksum"]
    with pytest.raises(CheckpointError, match=r"objective\.corpus was"):
        runner.resume(tmp_path / "again", run.spec)


def test_a_comparison_is_of_one_commit(hub, tmp_path):
    old = hub.commit("old and very much longer than it would have to be for a window of tokens")

    def moved(_line):
        hub.branches["main"] = "0" * 40

    specs = (tiny_spec("owner/essays", "a", steps=2), tiny_spec("owner/essays", "b", steps=2))
    runs = run_comparison(Comparison(specs), tmp_path / "runs", report=moved)
    assert {run.spec.objective.corpus for run in runs} == {f"owner/essays@{old}"}


def test_a_data_set_that_is_not_there_is_said_so(hub):
    with pytest.raises(FileNotFoundError, match=r"'other/none' is not on the hub, or it needs a login"):
        open_source("other/none")


def test_known_data_sets_have_short_names(monkeypatch):
    found = types.SimpleNamespace(sha="1" * 40)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: found)
    assert open_source("openwebtext-100k").name == "Elriggs/openwebtext-100k@111111111111, train"
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

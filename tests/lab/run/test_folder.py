import json

import pytest

from polargrad.lab.comparison import comparison, protocol
from polargrad.lab.run.folder import (
    RECORDS,
    SPEC,
    SUMMARY,
    RecordError,
    RunFolder,
    find_runs,
    read_run,
    refuse_existing,
)
from polargrad.lab.studies.matrix import experiments
from tests.runs import tiny_spec, written_run

CURVE = [(0, 8.0), (2, 6.0), (4, 5.0)]


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    run = written_run(tmp_path / "deep" / "one", CURVE)
    assert [(r["step"], r["val_loss"]) for r in run.of_kind("eval")] == CURVE
    assert len(run.of_kind("step")) == 4
    assert run.status == "finished"
    assert run.spec.name == "one"


def test_an_existing_folder_is_refused_and_left_as_it_is(tmp_path):
    written_run(tmp_path / "one", CURVE)
    before = {path: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    with pytest.raises(FileExistsError, match="another --out, or delete it"):
        RunFolder(tmp_path / "one", tiny_spec("text.txt"), {})
    assert {path: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FileExistsError):
        RunFolder(tmp_path / "file", tiny_spec("text.txt"), {})
    assert (tmp_path / "file").read_text() == "kept"


def test_records_are_there_before_the_run_ends(tmp_path):
    with RunFolder(tmp_path / "one", tiny_spec("text.txt"), {}) as folder:
        folder.record({"kind": "event", "step": 1, "event": "skipped", "message": "naïve"})
        assert read_run(tmp_path / "one").of_kind("event")[0]["message"] == "naïve"
    assert read_run(tmp_path / "one").status == "unfinished"


def test_a_figure_that_is_not_finite_is_not_written(tmp_path):
    with RunFolder(tmp_path / "one", tiny_spec("text.txt"), {}) as folder:
        with pytest.raises(ValueError):
            folder.record({"kind": "step", "step": 1, "loss": float("nan")})
        assert (tmp_path / "one" / RECORDS).read_text() == ""


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"kind":"eval","step":3,"sec', "not readable as JSON"),
        ("", "not readable as JSON"),
        ("[1, 2]", "not an object with a kind"),
        ('{"step": 3}', "not an object with a kind"),
        ('{"kind":"eval","step":3}', "lacks seconds"),
        ('{"kind":"eval","step":"3","seconds":1.0}', "step of the eval record is '3'"),
        ('{"kind":"step","step":3,"loss":"low","seconds":1.0,"optimizer_seconds":0.5}', "loss of the step record"),
        ("\udcff\udcfe", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
    ],
)
def test_a_damaged_record_names_file_line_and_remedy(tmp_path, line, complaint):
    written_run(tmp_path / "one", CURVE)
    path = tmp_path / "one" / RECORDS
    lines = path.read_bytes().splitlines()
    lines[4] = line.encode("utf-8", "surrogateescape")
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RecordError, match=complaint) as caught:
        read_run(tmp_path / "one")
    assert f"{path}, line 5:" in str(caught.value)
    assert "Delete line 5" in str(caught.value)


def test_a_truncated_last_line_is_said(tmp_path):
    written_run(tmp_path / "one", CURVE)
    path = tmp_path / "one" / RECORDS
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RecordError, match="cut short"):
        read_run(tmp_path / "one")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', json.dumps({"format": 9})])
def test_a_damaged_spec_is_named(tmp_path, content):
    written_run(tmp_path / "one", CURVE)
    (tmp_path / "one" / SPEC).write_text(content)
    with pytest.raises(RecordError, match=r"spec\.json"):
        read_run(tmp_path / "one")


def test_what_is_missing_is_named(tmp_path):
    written_run(tmp_path / "one", CURVE)
    (tmp_path / "one" / SUMMARY).unlink()
    assert read_run(tmp_path / "one").status == "unfinished"
    (tmp_path / "one" / RECORDS).unlink()
    with pytest.raises(FileNotFoundError, match="run it again"):
        read_run(tmp_path / "one")
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        read_run(tmp_path)


def test_runs_are_found_alone_and_in_a_comparison(tmp_path):
    for name in ("b", "a"):
        written_run(tmp_path / "both" / name, CURVE)
    assert [path.name for path in find_runs(tmp_path / "both")] == ["a", "b"]
    assert find_runs(tmp_path / "both" / "a") == [tmp_path / "both" / "a"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        find_runs(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_runs(tmp_path / "nowhere")


PLANS = {
    "comparison.json": comparison.resume_comparison,
    "protocol.json": protocol.resume_protocol,
    "experiment.json": experiments.resume_experiment,
}


@pytest.mark.parametrize(
    "content", ["", "[" * 9999, "[]", "{}", '{"format": 1, "recipes": 3, "choices": 3}', '{"a": NaN}']
)
@pytest.mark.parametrize("name", PLANS)
def test_a_damaged_plan_is_named(tmp_path, name, content):
    with pytest.raises(FileNotFoundError, match=f"holds no {name[:-5]}: it has no {name}"):
        PLANS[name](tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(RecordError, match=f"{name} .*restore it, or run"):
        PLANS[name](tmp_path)


def test_a_folder_that_could_not_be_made_is_refused_early_and_nothing_is_left(tmp_path):
    refuse_existing(tmp_path / "deep" / "run")
    (tmp_path / "file").write_text("")
    for path, error in (("x" * 300, OSError), ("file/run", NotADirectoryError), ("file", FileExistsError)):
        with pytest.raises(error):
            refuse_existing(tmp_path / path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

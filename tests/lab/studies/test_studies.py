"""Studies from the command line: they run, refuse what they cannot do, and fail aloud."""

import json

import pytest

from polargrad.lab import studies
from polargrad.lab.cli.main import main
from polargrad.lab.report.page import Section, Table
from polargrad.lab.studies import STUDIES, Study
from polargrad.lab.studies.study import StudyFolder, StudyResult


def _made(ok):
    def run(out, *, seed=42, progress=print):
        progress("only stage", 0.5)
        with StudyFolder(out, "toy", {"seed": seed}) as folder:
            folder.record("toy", value=float("nan"), nested={"x": [1.0, float("inf")]})
            table = Table(("name", "value"), [("<b>", "1 & 2")], note="a < b")
            page = folder.finish("Toy", ["It is <done>."], [Section("S", ["p"], [table])], {"status": "finished"})
        return StudyResult(page, ["It is [done]."], ok=ok)

    return Study("a toy", run)


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setattr(studies, "STUDIES", {"good": _made(True), "bad": _made(False)})


def test_a_study_runs_and_says_what_it_found(toys, tmp_path, capsys):
    assert main(["run", "good", "--seed", "7", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "It is [done]." in said.out
    assert "only stage" in said.err
    assert json.loads((tmp_path / "out" / "study.json").read_text())["options"] == {"seed": 7}
    record = json.loads((tmp_path / "out" / "records.jsonl").read_text())
    assert record == {"kind": "toy", "value": None, "nested": {"x": [1.0, None]}}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;" in page
    assert "1 &amp; 2" in page
    assert "<done>" not in page


def test_a_failed_claim_ends_the_command_with_code_1(toys, tmp_path):
    assert main(["run", "bad", "--out", str(tmp_path / "out")]) == 1


def test_an_existing_folder_is_left_alone(toys, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert main(["run", "good", "--out", str(tmp_path / "out")]) == 2
    assert "give another --out" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_what_a_study_cannot_do_is_refused(toys, tmp_path, capsys):
    assert main(["run", "good", "--steps", "3", "--out", str(tmp_path / "out")]) == 2
    assert "has no optimizer steps" in capsys.readouterr().err
    assert main(["run", "goood", "--out", str(tmp_path / "out")]) == 2
    assert "'good'?" in capsys.readouterr().err


def test_the_studies_are_listed(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES)
    assert set(STUDIES) >= {"theory", "preconditioning"}


def test_a_crooked_table_is_refused():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table(("a", "b"), [("x",)])


def test_an_interrupted_study_says_that_it_begins_again(monkeypatch, tmp_path, capsys):
    def run(out, *, seed=42, progress=print):
        with StudyFolder(out, "toy", {"seed": seed}):
            raise KeyboardInterrupt

    monkeypatch.setattr(studies, "STUDIES", {"long": Study("a toy", run)})
    assert main(["run", "long", "--out", str(tmp_path / "one")]) == 130
    said = capsys.readouterr().err
    assert f"until then is in {tmp_path / 'one'}" in said
    assert "`polargrad run long` begins again" in said

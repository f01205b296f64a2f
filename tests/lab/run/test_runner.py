import dataclasses

import pytest

from polargrad.lab.report.curves import draw
from polargrad.lab.run import runner
from polargrad.lab.run.folder import read_run
from tests.runs import ADAMW, tiny_spec, tiny_text

ROLES = ("hidden", "embedding", "head", "vector")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus with a cache of its own."""
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLARGRAD_CACHE", str(folder / "cache"))
        yield tiny_text(folder)


def test_a_run_from_spec_to_figures(text, tmp_path):
    spec = tiny_spec(text, polar=True)
    run = runner.run(spec, tmp_path / "one")
    assert run == read_run(tmp_path / "one")
    assert run.spec == spec
    assert run.status == "finished"
    assert [record["step"] for record in run.of_kind("eval")] == [0, 2, 4]
    assert [record["step"] for record in run.of_kind("step")] == [1, 2, 3, 4]
    assert {record["role"] for record in run.of_kind("matrix")} == {"embedding", "hidden"}
    assert set(run.of_kind("step")[0]["lr"]) == {"hidden", "embedding", "head", "vector"}
    assert len(run.environment["corpus_checksum"]) == 64
    assert run.environment["parameters"] > 0
    draw(run)
    assert (tmp_path / "one" / "figures" / "loss-steps.png").is_file()


def test_equal_specs_give_equal_losses_and_another_seed_does_not(text, tmp_path):
    def losses(name, seed):
        run = runner.run(tiny_spec(text, steps=2, seed=seed), tmp_path / name)
        return [record["loss"] for record in run.of_kind("step")]

    first = losses("first", 42)
    assert losses("again", 42) == first
    assert losses("other", 43) != first


def test_an_existing_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "one").mkdir()
    with pytest.raises(FileExistsError, match="another --out"):
        runner.run(tiny_spec(tmp_path / "no-such-text.txt"), tmp_path / "one")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"hidden": ADAMW}}, "roles embedding, head, hidden, vector, and tiny has options for hidden"),
        ({"optimizer": dict.fromkeys((*ROLES, "conv"), ADAMW)}, "just the roles of the model"),
        ({"optimizer": {**dict.fromkeys(ROLES, ADAMW), "hidden": {"lr": 1.0, "scale": "x"}}}, "scale"),
        ({"probe": ("no.such.weight",)}, "cannot probe 'no.such.weight'"),
    ],
)
def test_a_spec_that_does_not_fit_leaves_no_folder(text, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        runner.run(dataclasses.replace(tiny_spec(text), **changes), tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_an_interrupted_run_keeps_what_was_recorded(text, tmp_path):
    class Impatient:
        def start(self, total, unit):
            pass

        def update(self, step, loss, units, seconds):
            if step == 2:
                raise KeyboardInterrupt

        def evaluated(self, step, figures):
            pass

        def finish(self, status):
            pass

    with pytest.raises(runner.Interrupted, match="one"):
        runner.run(tiny_spec(text), tmp_path / "one", progress=Impatient())
    run = read_run(tmp_path / "one")
    assert run.status == "interrupted"
    assert len(run.of_kind("step")) == 2


def test_a_diverging_run_is_recorded_as_one(text, tmp_path):
    spec = tiny_spec(text, steps=20)
    run = runner.run(spec.with_option("head", "lr", 1e4), tmp_path / "wild")
    assert run.status == "diverged"
    assert "diverged" in {event["event"] for event in run.of_kind("event")}

import dataclasses
import math

import pytest
import torch

from polargrad.lab.run import runner
from polargrad.lab.run.folder import read_run
from polargrad.lab.train.parallel import Parallel, mesh_sizes, parse_mesh, processes
from tests.runs import tiny_spec, tiny_text
from tests.torchrun import torchrun


def test_meshes_of_the_modes():
    assert mesh_sizes("ddp", 4) == (4, 1, 1)
    assert mesh_sizes("fsdp", 4) == (1, 4, 1)
    assert mesh_sizes("hsdp", 4) == (2, 2, 1)
    assert mesh_sizes("tp", 4) == (1, 1, 4)
    assert mesh_sizes("tp", 4, "1x2x2") == (1, 2, 2)
    assert parse_mesh("16x8x8") == (16, 8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("fdsp", 2), "unknown mode 'fdsp'; did you mean 'fsdp'"),
        (("hsdp", 3), "3 is odd"),
        (("ddp", 2, "2x2x1"), "has 4 ranks, and 2 processes"),
        (("ddp", 2, "1x2x1"), "is not one of ddp, whose meshes are Dx1x1"),
        (("tp", 2, "2x1x1"), "1xSxT"),
        (("ddp", 2, "2"), "cannot read the mesh '2'"),
        (("ddp", 2, "0x2x1"), "cannot read the mesh"),
    ],
)
def test_meshes_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        mesh_sizes(*given)


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with processes(None) as alone:
        assert alone.is_single
        assert alone.is_main_process
        assert alone.data_group is None
        assert alone.metadata() == {}
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"), processes("ddp"):
        pass
    with pytest.raises(ValueError, match="--mesh needs --parallel"), processes(None, "2x1x1"):
        pass
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun started 2 processes that would all do the same"), processes(None):
        pass


def test_a_batch_must_divide():
    Parallel("ddp", (4, 1, 1)).check_batch(16)
    Parallel("tp", (1, 1, 3)).check_batch(16)
    with pytest.raises(ValueError, match=r"a batch of 16 .* 3 processes; their number may be one of 1, 2, 4, 8, 16$"):
        Parallel("hsdp", (3, 1, 1)).check_batch(16)


def test_alone_the_mean_is_the_value_itself():
    values = torch.tensor([1.0, 2.0])
    assert Parallel().mean(values) is values


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A run of one process, and the spec, to be repeated by several."""
    folder = tmp_path_factory.mktemp("parallel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLARGRAD_CACHE", str(folder / "cache"))
        spec = tiny_spec(tiny_text(folder), polar=True, steps=5)
        spec = dataclasses.replace(spec, objective=dataclasses.replace(spec.objective, evaluation_windows=7))
        one = runner.run(spec, folder / "one")
        (folder / "spec.json").write_text(spec.to_json(), encoding="utf-8")
        yield one


def curves(run):
    """Everything on record but the times, and the text that a single process alone writes at the end."""
    timed = {"seconds", "optimizer_seconds"}
    kept = [record for record in run.records if record["kind"] != "sample"]
    return [{key: value for key, value in record.items() if key not in timed} for record in kept]


def assert_same_curves(run, other):
    for mine, theirs in zip(curves(run), curves(other), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert theirs[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), (key, mine)


@pytest.mark.parametrize(
    "mode", ["ddp", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("fsdp", "hsdp", "tp"))]
)
def test_two_ranks_write_what_one_process_writes(single, mode):
    folder = single.path.parent
    out = folder / mode
    done = torchrun(2, "-m", "polargrad", "run", folder / "spec.json", "--parallel", mode, "--out", out)
    assert done.returncode == 0, done.stderr
    run = read_run(out)
    assert run.status == "finished"
    assert (run.environment["parallel"], run.environment["processes"]) == (mode, 2)
    assert_same_curves(single, run)
    assert done.stdout.count("Records are in") == 1
    with pytest.raises(AssertionError):  # negative control: another seed
        assert_same_curves(single, dataclasses.replace(run, records=run.records[::-1]))


@pytest.mark.slow
def test_padding_of_the_vocabulary_stays_out_of_the_loss_where_tables_are_cut(single):
    folder = single.path.parent
    (tokenizer,) = (folder / "cache").rglob("tokenizer.json")
    objective = dataclasses.replace(single.spec.objective, tokenizer=str(tokenizer), vocabulary=384)
    spec = dataclasses.replace(single.spec, objective=objective)
    (folder / "padded.json").write_text(spec.to_json(), encoding="utf-8")
    one = runner.run(spec, folder / "padded")
    done = torchrun(2, "-m", "polargrad", "run", folder / "padded.json", "--parallel", "tp", "--out", folder / "cut")
    assert done.returncode == 0, done.stderr
    assert_same_curves(one, read_run(folder / "cut"))
    # A uniform choice among the words of the text, and not among the padding as well.
    assert one.of_kind("eval")[0]["val_loss"] == pytest.approx(math.log(300), abs=0.1)


@pytest.mark.slow
def test_three_ranks_cannot_divide_a_batch_of_four(single):
    folder = single.path.parent
    out = folder / "three"
    done = torchrun(3, "-m", "polargrad", "run", folder / "spec.json", "--parallel", "ddp", "--out", out)
    assert done.returncode != 0
    assert "polargrad: a batch of 4 cannot be divided equally among 3 processes" in done.stderr
    assert not out.exists()

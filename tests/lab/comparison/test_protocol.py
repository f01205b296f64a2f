"""The protocol: searches of equal length, seeds and text that chose nothing, and the rule that tells apart."""

import dataclasses
import json
import math
import random
import shutil
import sys

import pytest

from polargrad.lab.cli.main import main
from polargrad.lab.cli.protocol import Protocol as Command
from polargrad.lab.comparison.coordinate_search import Coordinate, CoordinateSearch, coordinates_of, with_numbers_of
from polargrad.lab.comparison.protocol import Protocol, ProtocolFindings, Setting, run_protocol, verdicts_of
from polargrad.lab.lm.models import ARCHITECTURES, Architecture
from polargrad.lab.recipes import spec_of
from polargrad.lab.run.spec import RunSpec
from tests.runs import tiny_spec, tiny_text


def searched(base, runs, loss, kind=CoordinateSearch):
    """The state of a search whose runs have the loss of their spec, and the specs in order."""
    search, losses, made = kind(base, runs), {}, []
    while (state := search.state(losses)).pending:
        (spec,) = state.pending
        made.append(spec)
        losses[spec.name] = loss(spec)
    return state, made


def test_every_number_of_a_recipe_is_a_coordinate_and_moves_within_its_range():
    spec = spec_of("muon+adamw")
    found = {one.label: one for one in coordinates_of(spec)}
    assert list(found)[:5] == ["hidden.lr", "embedding.lr", "head.lr", "vector.lr", "hidden.momentum"]
    assert {"decay_fraction", "hidden.weight_decay", "head.weight_decay", "embedding.betas[0]", "head.betas[1]"} <= set(
        found
    )
    assert [label for label in found if "vector" in label] == ["vector.lr"]
    moved = {label: [one.moved(spec, moves) for moves in (-1.0, 1.0)] for label, one in found.items()}
    assert moved["hidden.lr"] == [0.0025, 0.01]
    assert moved["hidden.momentum"] == [0.8, 0.95]
    assert moved["hidden.weight_decay"] == [None, 0.03]
    assert moved["head.weight_decay"] == [0.03333, 0.3]
    assert moved["decay_fraction"] == [0.5, 0.9]
    assert found["decay_fraction"].moved(spec, 2.0) is None
    assert found["hidden.momentum"].moved(spec, -4.0) is None
    for one in found.values():
        value = one.moved(spec, 1.0)
        assert one.value(one.applied(spec, value)) == value
        assert one.applied(spec, one.value(spec)).optimizer == spec.optimizer or one.option in ("weight_decay",)


def test_a_move_to_what_the_optimizer_refuses_is_not_made():
    """A halved memory of momentum .5 is none, which Nesterov's momentum refuses and plain momentum does not."""
    nesterov, plain = (
        {one.label: one for one in coordinates_of(spec_of(name))}
        for name in ("muon+normalized-tables", "muon+polargrad")
    )
    assert nesterov["embedding.momentum"].moved(spec_of("muon+normalized-tables"), -1.0) is None
    assert plain["embedding+head.momentum"].moved(spec_of("muon+polargrad"), -1.0) == 0.0


def test_a_search_goes_to_the_minimum_of_a_bowl():
    base = spec_of("muon+adamw")

    def bowl(spec):
        hidden, head = spec.learning_rates["hidden"], spec.learning_rates["head"]
        decay = spec.optimizer["hidden"].get("weight_decay", 0.0)
        return math.log2(hidden / 0.02) ** 2 + math.log2(head / 0.0025) ** 2 + (math.log(decay + 0.01) + 3.22) ** 2

    state, made = searched(base, 60, bowl)
    assert state.best is not None
    assert state.best.learning_rates["hidden"] == 0.02
    assert state.best.learning_rates["head"] == 0.0025
    assert state.best.optimizer["hidden"]["weight_decay"] == 0.03
    assert state.best.learning_rates["embedding"] == base.learning_rates["embedding"]
    assert len({json.dumps(spec.content, sort_keys=True) for spec in made}) == len(made)


def test_every_recipe_has_the_same_number_of_runs_and_starts_at_its_own_values():
    for name in ("adamw", "muon+adamw", "whitened-muon+adamw"):
        state, made = searched(spec_of(name), 24, lambda spec: float(sum(map(ord, str(spec.content))) % 97))
        assert len(made) == 24
        assert not state.pending
        assert made[0].optimizer == spec_of(name).optimizer


def test_a_recipe_starts_at_the_tuned_baselines_values_where_they_are_better():
    tuned = spec_of(
        "muon+adamw", changes=["hidden.lr=0.02", "hidden.momentum=0.8", "head.weight_decay=0.0", "vector.lr=0.1"]
    )
    tuned = dataclasses.replace(tuned, schedule=dataclasses.replace(tuned.schedule, decay_fraction=0.5))
    base = spec_of("whitened-muon+adamw")
    start = with_numbers_of(base, tuned)
    assert start.optimizer == {
        **tuned.optimizer,
        "hidden": {**tuned.optimizer["hidden"], "whitening": base.optimizer["hidden"]["whitening"]},
    }
    assert start.schedule == tuned.schedule
    other = with_numbers_of(spec_of("muon+normalized-rows"), tuned)  # its hidden rates are of another scale
    assert other.optimizer["hidden"] == spec_of("muon+normalized-rows").optimizer["hidden"]
    assert with_numbers_of(tuned, tuned) == tuned

    def bowl(spec):
        return math.log2(spec.learning_rates["hidden"] / 0.04) ** 2 + 10 * abs(spec.schedule.decay_fraction - 0.5)

    search, losses, made = CoordinateSearch(base, 8, start), {}, []
    while (state := search.state(losses)).pending:
        made += state.pending
        losses[made[-1].name] = bowl(made[-1])
    assert [spec.optimizer for spec in made[:2]] == [base.optimizer, start.optimizer]
    assert state.best.learning_rates["hidden"] == 0.04
    worse, losses = dataclasses.replace(start, schedule=base.schedule).with_option("hidden", "lr", 1e-4), {}
    search = CoordinateSearch(base, 3, worse)
    while (state := search.state(losses)).pending:
        losses[state.pending[0].name] = bowl(state.pending[0])
    assert len(losses) == 3
    assert state.best.learning_rates["hidden"] == 2 * base.learning_rates["hidden"]  # from the recipe's own values


def test_roles_move_together_that_are_alike_before_and_after_a_start():
    joined, apart = spec_of("muon+polargrad"), spec_of("muon+polargrad", changes=["head.lr=0.1"])
    labels = [{one.label for one in coordinates_of(*pair)} for pair in ((joined, apart), (apart, joined), (joined,))]
    assert labels[0] == labels[1] >= {"embedding.lr", "head.lr"}
    assert "embedding+head.lr" in labels[2]


def test_runs_that_diverge_are_never_the_best():
    base = spec_of("adamw")
    state, made = searched(base, 8, lambda spec: 1.0 if spec.optimizer == base.optimizer else None)
    assert state.best is not None
    assert state.best.optimizer == base.optimizer
    assert len(made) == 8
    state, _ = searched(base, 3, lambda spec: None)
    assert state.best is not None


def test_optuna_searches_the_same_numbers_in_as_many_runs_and_goes_on_where_it_was():
    optuna = pytest.importorskip("optuna")
    from polargrad.lab.comparison.optuna_search import OptunaSearch

    base = spec_of("muon+adamw")

    def bowl(spec):
        off = math.log2(spec.learning_rates["hidden"] / 0.02) ** 2 + math.log2(spec.learning_rates["head"] / 0.002) ** 2
        return None if off > 30 else off

    state, made = searched(base, 30, bowl, OptunaSearch)
    assert len(made) == 30
    assert made[0].optimizer == base.optimizer
    assert made[0].name == f"muon+adamw optuna {optuna.__version__} try 01"
    assert bowl(state.best) == min(loss for spec in made if (loss := bowl(spec)) is not None) < bowl(base)
    for spec in made:  # within the ranges that the search along the coordinates has
        for one in coordinates_of(base):
            low, high = (one.moved(base, moves) for moves in one.span(base))
            assert low <= one.value(spec) <= high, one.label
    again = OptunaSearch(base, 30)
    losses = {spec.name: bowl(spec) for spec in made[:17]}
    assert again.state(losses).pending == (made[17],)
    assert OptunaSearch(dataclasses.replace(base, seed=7), 30).state(losses).pending != (made[17],)


def test_optuna_that_is_missing_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else a busy machine says how many it takes
    for command in (["compare", "adamw", "--tune"], ["protocol", "adamw", "muon+adamw"]):
        assert main([*command, "--tuner", "optuna"]) == 1
        said = capsys.readouterr().err
        assert said == 'polargrad: --tuner optuna needs optuna: pip install "polargrad[tuning]"\n'
    assert not list(tmp_path.iterdir())


@pytest.fixture
def texts(tmp_path):
    search = tiny_text(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(search, other / "text.txt")
    return search, other


def asked(texts, **changed):
    search, other = texts
    recipes = (tiny_spec(search, "adamw"), tiny_spec(search, "polar", polar=True))
    options = {"settings": (Setting(4, 64),), "seeds": (101, 102), "runs": 3, "baseline": "adamw", "evaluations": 2}
    return Protocol(recipes, text=str(other), **{**options, **changed})


def test_seeds_and_text_that_count_chose_nothing(texts):
    protocol, losses, made = asked(texts), {}, []
    while waiting := protocol.pending(losses):
        made.append(waiting[0])
        losses[waiting[0].name] = float(len(made))
    assert len(made) == protocol.size == 13
    searches = [spec for spec in made if " try " in spec.name]
    counted = [spec for spec in made if " seed " in spec.name]
    assert {spec.seed for spec in searches} == {1}
    assert {spec.objective.corpus for spec in searches} == {str(texts[0])}
    assert {spec.seed for spec in counted} == {101, 102}
    assert {spec.objective.corpus for spec in counted} == {str(texts[1])}
    assert all(spec.objective.batch * spec.objective.sequence == 64 for spec in made)
    # the first run had the lowest loss, so that what counts runs with the recipe's own values
    assert counted[0].optimizer == protocol.recipes[0].optimizer
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


@pytest.mark.parametrize(
    ("match", "changed"),
    [
        ("seed 101 chooses the numbers", {"search_seed": 101}),
        ("seeds must be different numbers, at least two", {"seeds": (101,)}),
        ("the baseline 'muon' is not among the recipes adamw, polar", {"baseline": "muon"}),
        ("different settings", {"settings": (Setting(4, 64), Setting(4, 64))}),
        ("50 tokens in a step are not a multiple of the model's sequences of 16", {"settings": (Setting(4, 50),)}),
        ("runs", {"runs": -1}),
    ],
)
def test_what_would_not_be_fair_is_refused(texts, match, changed):
    with pytest.raises(ValueError, match=match):
        asked(texts, **changed)
    with pytest.raises(ValueError, match="both on"):
        asked((texts[0], texts[0]))
    long = dataclasses.replace(tiny_spec(texts[0], "adamw"), name="a" * 105)
    with pytest.raises(ValueError, match="cannot be called"):  # with what the searches add to it
        Protocol((long, tiny_spec(texts[0], "polar")), (Setting(4, 64),), str(texts[1]), baseline=long.name)


def test_the_rule_tells_apart_what_is_apart():
    """Eight pairs whose differences vary by .01: told apart from 4.75 * .01 / sqrt(8) = .0168 on, 7 degrees."""
    noise = [0.01 * z for z in (-1.2, -0.8, -0.6, -0.1, 0.1, 0.6, 0.8, 1.2)]
    sigma = math.sqrt(sum(z * z for z in noise) / 7)
    base = [3.5 + 0.1 * (i % 3) for i in range(8)]  # seeds differ by far more than recipes
    least = 4.75 * sigma / math.sqrt(8)
    for gain, word in ((1.02, "better"), (-1.02, "worse"), (0.98, "not told apart"), (0.0, "not told apart")):
        others = {"new": [b - gain * least + z for b, z in zip(base, noise, strict=True)]}
        verdict = verdicts_of(base, others)["new"]
        assert verdict.word == word
        assert verdict.gain == pytest.approx(gain * least)
        assert verdict.error == pytest.approx(sigma / math.sqrt(8))
    # a noisy recipe beside it changes nothing
    ahead = [b - 1.02 * least + z for b, z in zip(base, noise, strict=True)]
    noisy = [b + 0.5 + 50 * z for b, z in zip(base, noise, strict=True)]
    assert verdicts_of(base, {"new": ahead, "noisy": noisy})["new"] == verdicts_of(base, {"new": ahead})["new"]
    assert verdicts_of(base, {"same": base})["same"].word == "not told apart"


def test_recipes_that_are_the_same_are_told_apart_as_rarely_as_promised():
    generator = random.Random(0)
    words = []
    for _ in range(400):
        base, other = ([generator.gauss(3.5, 0.01) for _ in range(8)] for _ in range(2))
        words.append(verdicts_of(base, {"other": other})["other"].word)
    assert words.count("not told apart") >= 396  # .2% of 400 are expected to be told apart


def test_a_protocol_runs_is_resumed_and_writes_its_page(texts, tmp_path, capsys):
    protocol, folder = asked(texts), tmp_path / "out"
    page = run_protocol(protocol, folder)
    found = ProtocolFindings.read(folder)
    assert len(found.runs) == protocol.size
    (setting,) = protocol.settings
    replicates, verdicts = found.replicates(setting), found.verdicts(setting)
    assert list(replicates) == ["adamw", "polar"]
    first, second = (a - b for a, b in zip(*(one.final.values for one in replicates.values()), strict=True))
    assert verdicts["polar"].error == pytest.approx(abs(first - second) / 2)
    assert verdicts["polar"].gain == pytest.approx(replicates["adamw"].final.mean - replicates["polar"].final.mean)
    text = page.read_text(encoding="utf-8")
    assert all(part in text for part in ("4 steps of 64 tokens", "polar", "in errors", "Numbers that changed"))
    assert found.results(setting).columns.count("Steps of\nadamw") == 1
    turned = dataclasses.replace(found, protocol=dataclasses.replace(protocol, baseline="polar")).results(setting)
    column = turned.columns.index("Steps of\nadamw")
    assert [str(row[column]) for row in turned.rows if "adamw" in str(row[0])] == ["100% ± 0"]
    losses = found.losses
    shutil.rmtree(folder / "polar 4x64 seed 102")
    assert main(["report", str(folder)]) == 0
    assert "not run to the end yet" in capsys.readouterr().out
    assert main(["resume", str(folder)]) == 0
    assert ProtocolFindings.read(folder).losses == losses
    with pytest.raises(FileExistsError):
        run_protocol(protocol, folder)


def test_the_command(texts, tmp_path, monkeypatch, capsys):
    tiny = {
        entry.name: getattr(tiny_spec(texts[0]).objective, entry.name) for entry in dataclasses.fields(Architecture)
    }
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture(**tiny))
    search, other = map(str, texts)
    out = tmp_path / "out"
    options = ["--steps", "3", "--tokens", "32", "--seeds", "2", "--data", search, "--text", other, "--model", "tiny"]
    options += ["--runs", "2"]
    assert main(["protocol", "muon+adamw", "whitened-muon+adamw", *options, "--out", str(out)]) == 0
    assert "whitened-muon+adamw" in capsys.readouterr().out
    spec = RunSpec.from_json((out / "whitened-muon+adamw 3x32 seed 101" / "spec.json").read_text())
    assert spec.optimizer["hidden"]["whitening"] == "two-sided"
    tuned = [str(out / "tuned" / f"{name} 3x32.json") for name in ("muon+adamw", "whitened-muon+adamw")]
    again = tmp_path / "again"
    assert main(["protocol", *tuned, *options[:-2], "--runs", "0", "--out", str(again)]) == 0
    for name in ("muon+adamw", "whitened-muon+adamw"):  # untouched
        found = [RunSpec.from_json((at / f"{name} 3x32 seed 102" / "spec.json").read_text()) for at in (out, again)]
        assert found[0].content == found[1].content
    assert len(list(again.glob("*/spec.json"))) == 4
    assert not (again / "tuned").exists()
    assert (
        "2 recipes, at the values that they came with, then run in float32 with 2 seeds"
        in (again / "report.html").read_text()
    )
    short = tmp_path / "short.txt"
    short.write_text("too little\n" * 20)
    bad = ["--text", str(short), "--out", str(tmp_path / "bad")]
    for names, said in ((["muon+adamw"], "alone is not a comparison"), (["muon+adamw", "adamw"], "too little text")):
        assert main(["protocol", *names, *options, *bad]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("flag", ["--steps", "--tokens"])
def test_numbers_in_a_list_are_checked_under_the_name_of_their_flag(flag, tmp_path, capsys):
    assert main(["protocol", flag, "64", "0", "--out", str(tmp_path / "out")]) == 2
    assert f"{flag} must be an integer of at least 1; got 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_coordinate_of_the_schedule_has_no_roles():
    spec = spec_of("adamw")
    one = Coordinate("decay_fraction")
    assert one.applied(spec, 0.4).schedule == dataclasses.replace(spec.schedule, decay_fraction=0.4)


def test_a_model_with_other_roles_takes_the_options_of_the_recipe(monkeypatch, tmp_path):
    tied = Architecture(family="gpt2", hidden_size=16, layers=1, heads=2, vocabulary=300, sequence=16, untied=False)
    monkeypatch.setitem(ARCHITECTURES, "tied", tied)
    mini = spec_of("muon+adamw", changes=["hidden.lr=0.03"])
    (tmp_path / "spec.json").write_text(mini.to_json())
    names = (str(tmp_path / "spec.json"), "muon+normalized-tables", "torch.optim:RAdam+adamw")
    tuned, default, outside = Command(names=names, model="tied", device="cpu")._specs()
    for spec in (tuned, default, outside):
        assert set(spec.optimizer) == {"hidden", "tied", "position", "vector"}
    assert tuned.optimizer["hidden"]["lr"] == 0.03
    assert tuned.optimizer["tied"]["lr"] == 0.005
    assert default.optimizer["tied"]["lr"] == 0.224
    assert "RAdam" in outside.optimizer["hidden"]["rule"]
    assert outside.optimizer["tied"]["rule"] == "adamw"


def test_recipes_take_changes_and_all_runs_a_precision(tmp_path):
    (tmp_path / "spec.json").write_text(spec_of("adamw").to_json())
    changes = ("muon+adamw.hidden.lr=0.02", "muon+normalized-tables.embedding+head.method=svd", "Lion.lr=3e-4")
    names = ("muon+adamw", "muon+normalized-tables", "torch.optim:RMSprop", str(tmp_path / "spec.json"))
    options = {"device": "cpu", "precision": "bfloat16-mixed", "compiled": True}
    with pytest.raises(ValueError, match="Lion"):
        Command(names=names, set=changes, **options)._specs()
    muon, default, outside, _ = specs = Command(names=names, set=(*changes[:2], "RMSprop.lr=3e-4"), **options)._specs()
    assert muon.learning_rates == {**spec_of("muon+adamw").learning_rates, "hidden": 0.02}
    assert default.optimizer["head"]["method"] == "svd"
    assert "accuracy" not in default.optimizer["head"]  # which is that of the recipe's own method
    assert set(outside.learning_rates.values()) == {3e-4}
    for spec in specs:
        assert (spec.objective.precision, spec.objective.compiled) == ("bfloat16-mixed", True)
    out = tmp_path / "out"
    assert main(["protocol", "muon+adamw", "adamw", "--set", "adamw.hidden.bogus=1", "--out", str(out)]) == 2
    assert not out.exists()
    (tmp_path / "mine.py").write_text("from polargrad.linalg import SVD\n\n\nclass Mine(SVD):\n    pass\n")
    where = f"{tmp_path / 'mine.py'}:Mine"
    named = Command(names=names[:2], set=(f"muon+normalized-tables.head.method={where}",), device="cpu")._specs()[1]
    assert named.optimizer["head"]["method"] == where  # code from outside, which nothing has loaded yet
    with pytest.raises(ValueError, match="--set changes recipes, and there are none"):
        Command(names=names[-1:] * 2, set=changes[:1], device="cpu")._specs()

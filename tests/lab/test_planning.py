"""Whole models on paper."""

import pytest

from polargrad.distributed.cost import Machine
from polargrad.distributed.strategy import Strategy
from polargrad.lab.cli import main as cli
from polargrad.lab.planning import plan_model, rows


def test_a_demo_model_on_four_shards():
    made = plan_model("demo", (1, 4, 1))
    assert made.parameters == 1_895_424
    by_role = {}
    for line in made.plan.lines:
        by_role.setdefault(line.role, set()).add(line.strategy)
    assert by_role["embedding"] == by_role["head"] == {Strategy.GRAM}
    assert by_role["hidden"] == {Strategy.OWNER}
    assert by_role["vector"] == {None}
    assert 0.0 < made.share < 1.0
    found = rows(made.plan)
    assert sum(len(row.names) for row in found) == len(made.plan.lines)
    assert sum(row.sent for row in found) == pytest.approx(sum(sum(line.traffic.sent) for line in made.plan.lines) / 4)


def test_copies_send_directions_and_no_parts():
    made = plan_model("demo", (4, 1, 1))
    hidden = [line for line in made.plan.lines if line.role == "hidden"]
    numbers = sum(line.layout.tiles[0].numel for line in hidden)
    assert sum(sum(line.traffic.sent) for line in hidden) == 3 * (4 * numbers + 8 * len(hidden))


def test_a_thousand_gpus_and_tensor_parallel_ranks():
    made = plan_model("qwen2.5-540m", (16, 64, 1), "muon+polargrad")
    assert made.plan.world == 1024
    assert made.parameters == 540_865_536
    assert max(made.plan.sent) < 1e9
    cut = plan_model("qwen2.5-540m", (1, 2, 2), "muon+polargrad", Machine(), 1024)
    layouts = {line.name: str(line.layout) for line in cut.plan.lines}
    assert layouts["model.layers.0.self_attn.q_proj.weight"].count("dimension 0") == 2
    assert "dimension 1 cut by 2" in layouts["model.layers.0.mlp.down_proj.weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dema", (1, 1, 1)), "did you mean 'demo'"),
        (("demo", (1, 1, 1), "adam"), "unknown optimizer 'adam'"),
        (("demo", (1, 1, 1), "soap"), "stepped by soap"),
        (("gpt2-small", (1, 1, 2)), "tensor parallelism is known for qwen2"),
        (("demo", (1, 1, 5)), "divide neither the 3 heads"),
    ],
)
def test_what_cannot_be_planned(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_model(*arguments)


def test_the_command_prints_a_table_and_what_it_adds_up_to(capsys):
    assert cli.main(["plan", "--model", "demo", "--mesh", "2x4x1"]) == 0
    out = capsys.readouterr().out
    assert "model.embed_tokens.weight" in out
    assert "1,895,424 parameters on 8 ranks." in out
    assert "% of a step" in out
    assert cli.main(["plan", "--model", "demo", "--mesh", "2x4"]) == 2
    assert "cannot read the mesh '2x4'" in capsys.readouterr().err
    assert cli.main(["plan", "--model", "demo", "--mesh", "1x1x1", "--bandwidth", "0"]) == 2
    assert "bandwidth must be positive" in capsys.readouterr().err

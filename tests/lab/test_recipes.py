"""Recipes: one entry each, from the package or from a file of one's own."""

import json
import os
import subprocess
import sys

import pytest

from polargrad.lab import recipes
from polargrad.lab.recipes import RECIPES, optimizer_for, register

OWN = """
from polargrad.lab.recipes import by_role, polar, register, tables

register("sign+adamw", "Matrix sign descent on hidden matrices, AdamW on the rest.",
         by_role(polar(0.01, 0.9, scale="none", method="svd"), *tables()))
"""


def test_a_recipe_of_ones_own_is_listed_run_and_planned(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    script = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import own
from polargrad.lab.cli.main import main
sizes = ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--kv-heads", "2", "--mlp", "32"]
assert main(["list"]) == 0
assert main(["plan", "--model", "demo", "--mesh", "1x1x1", "--optimizer", "sign+adamw"]) == 0
assert main(["pretrain", *sizes, "--recipe", "sign+adamw", "--set", "hidden.lr=0.5", "--dry-run"]) == 0
from polargrad.lab.recipes import spec_of
print(spec_of("sign+adamw", steps=4).to_json())
"""
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Matrix sign descent on hidden matrices") == 2 + 1  # list, dry run, spec
    assert "hidden 0.5" in done.stdout
    spec = json.loads(done.stdout[done.stdout.rindex('{\n  "format"') :])
    assert spec["optimizer"]["hidden"]["scale"] == "none"


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="the recipe 'adamw' is taken"):
        register("adamw", "Another.", recipes.by_role(*recipes.tables()))


def test_a_change_reaches_the_roles_that_it_names():
    made = optimizer_for("muon+adamw", ["hidden", "head"], ["*.weight_decay=0.2", "hidden.scale=spectral"])
    assert list(made) == ["hidden", "head"]
    assert {options["weight_decay"] for options in made.values()} == {0.2}
    assert made["hidden"]["scale"] == "spectral"
    assert RECIPES["muon+adamw"].optimizer["hidden"]["scale"] == "rms"

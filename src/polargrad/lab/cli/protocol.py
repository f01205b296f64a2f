"""`polargrad protocol`: recipes tuned alike and judged on seeds and text that chose nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polargrad.lab.cli import report, terminal
from polargrad.lab.cli.arguments import Jobs, Positional
from polargrad.lab.comparison import protocol
from polargrad.lab.lm.models import architecture
from polargrad.lab.options import option
from polargrad.lab.recipes import Recipe, changed, changes_of, optimizer_for, recipe
from polargrad.lab.run.environment import chosen_device
from polargrad.lab.run.spec import LanguageModel, Precision, RunSpec
from polargrad.optim.roles import roles

RECIPES = ("muon+adamw", "adamw", "muon+polargrad", "muon+normalized-tables", "whitened-muon+adamw")


@dataclass(frozen=True, kw_only=True)
class Protocol(Jobs):
    """Tune every recipe alike, then judge it by the steps in which it reaches the final loss of the tuned baseline.

    It is the optimization track of modded-nanogpt in miniature. The model is fixed: by default width 96, two layers, a
    vocabulary of 1,024, sequences of 64. At every length and batch each recipe is tuned anew, by a search over its
    rates, momenta, betas, weight decays and the share of the run with falling rates, in the same number of runs, from
    its own values or those found for the baseline. Then it runs with seeds and on a text that the search has not seen.
    Two recipes are told apart by the rule of the track, with the standard deviation that these runs have. The defaults
    take about six hours on one core, three with --jobs 2 on two idle ones.

    `--runs 0` judges recipes at the values that they come with, such as those of a smaller model's search.

    `polargrad resume DIR` continues it where it was stopped, so that it can run in pieces.

    Example: polargrad protocol muon+adamw whitened-muon+adamw --steps 64 --tokens 16384 --runs 12 --jobs 2

    Args:
        names: recipes, or spec.json files whose optimizers and share of falling rates are taken, with their recipes'
            options for roles that they lack
        model: mini, or another model of `pretrain`
        baseline: whose final loss is to be reached
        set: change of an option of a recipe, in all its roles or in some; may be given several times
        steps: lengths of the runs
        tokens: tokens in a step
        runs: of the search of each recipe at each length and batch
        tuner: the search, along one number after the other or by Optuna
        seeds: number of seeds that count, from 101 on
        data: text of the search
        text: text of the runs that count; by default the sources of the installed torch
        documents: of that text; 0: all
        device: auto is a GPU where there is one; --jobs of them share it
        precision: of forward and backward, as in `pretrain`
        compiled: forward and backward through `torch.compile`
        out: new folder; runs/protocol-DATE-TIME by default
    """

    names: Positional[tuple[str, ...]] = RECIPES
    model: str = "mini"
    baseline: str = "muon+adamw"
    set: tuple[str, ...] = option((), metavar="RECIPE[.ROLE].OPTION=V", repeated=True)
    steps: tuple[int, ...] = (64, 192)
    tokens: tuple[int, ...] = (2048, 16384)
    runs: int = option(16, least=0)
    tuner: Literal["coordinate", "optuna"] = "coordinate"
    seeds: int = option(8, least=2)
    data: str = "standard-library"
    text: str = ""
    documents: int = option(0, least=0)
    device: str = "auto"
    precision: Precision = "float32"
    compiled: bool = option(False, flag="compile")
    out: Path | None = None

    def __call__(self) -> None:
        """Run everything, print the tables and write the page."""
        text, documents = self.text, self.documents
        if not text:
            import torch

            text, documents = str(Path(torch.__file__).parent), documents or 1000
        asked = protocol.Protocol(
            recipes=self._specs(),
            settings=tuple(protocol.Setting(steps, tokens) for tokens in self.tokens for steps in self.steps),
            text=text,
            documents=documents,
            seeds=tuple(range(101, 101 + self.seeds)),
            runs=self.runs,
            baseline=self.baseline,
            tuner=self.tuner,
        )
        out = terminal.new_folder(self.out, "protocol")
        with self.cores():
            protocol.run_protocol(asked, out, jobs=self.jobs, threads=self.threads, **report.narrated())
        report.print_protocol(out)

    def _specs(self) -> tuple[RunSpec, ...]:
        sizes = dataclasses.asdict(architecture(self.model))
        objective = LanguageModel(
            **sizes,
            corpus=self.data,
            device=chosen_device(self.device),
            precision=self.precision,
            compiled=self.compiled,
        )
        present = set(roles(objective.build(device="meta")).values())
        among = {name: recipe(name) for name in self.names if not name.endswith(".json")}
        if self.set and not among:
            raise ValueError("--set changes recipes, and there are none; edit a copy of the spec")
        specs = [
            _changed(among[name], present, changes_of(among[name], self.set, list(among.values())))
            if name in among
            else _read(Path(name), present)
            for name in self.names
        ]
        # The runs of a search are called by the recipe that they are a variant of, where that tells them apart.
        variants = [spec.recipe for spec in specs]
        return tuple(
            dataclasses.replace(
                spec,
                name=spec.recipe if variants.count(spec.recipe) == 1 else spec.name,
                objective=objective,
                probe=(),
            )
            for spec in specs
        )


def _changed(one: Recipe, roles: set[str], changes: list[str]) -> RunSpec:
    """A recipe's small run, with options for a model's roles."""
    options = changed(one, roles, changes)
    return dataclasses.replace(dataclasses.replace(one, optimizer=options)(), optimizer=options)


def _read(path: Path, roles: set[str]) -> RunSpec:
    """A spec from a file with options for a model's roles: its own, and its recipe's for those that it leaves out."""
    spec = RunSpec.from_json(path.read_text(encoding="utf-8"))
    known = {role: dict(options) for role, options in spec.optimizer.items() if role in roles}
    if missing := roles - known.keys():
        known |= optimizer_for(spec.recipe, missing)
    return dataclasses.replace(spec, optimizer=known)

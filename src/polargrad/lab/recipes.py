"""Recipes: optimizers of whole models by name, the laboratory's small run under each, and named comparisons.

Learning rates are for the demo's model (1.9 million parameters) and 200 steps: those of `adamw`, `muon+adamw` and
`muon+normalized-rows` come from the comparison of 2026-11-22 in docs/log.md. Both recipes of normalized tables have the
hidden and head rates of `muon+normalized-rows`, and those of embedding, vectors and tied tables from sketches on
smaller models; the others come from earlier sweeps or from those, and step a tied table as a head. Larger models and
other numbers of steps want their own. Convolutions and experts follow the hidden matrices.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from polargrad.lab.lm.models import architecture
from polargrad.lab.run.spec import LanguageModel, Plain, RunSpec, parse_setting, parse_value
from polargrad.lab.train import LoopConfig, WarmupLinearDecay
from polargrad.lab.train.optimizers import OPTIMIZERS, is_optimizer
from polargrad.linalg.registry import Registry
from polargrad.optim.options import without_accuracy
from polargrad.outside import is_reference

Options = dict[str, Plain]
Optimizer = dict[str, Options]

HIDDEN = ("hidden", "conv", "expert")
# AdamW's betas for matrices in runs of a few hundred steps, and for the rest.
SHORT, LONG = (0.8, 0.95), (0.9, 0.95)

# The demo's run: after a short warm-up the rates stay constant, then fall linearly to zero over the last 70%.
STEPS, WARMUP, DECAY = 150, 10, 0.7
# Embedding, head, and one early and one late hidden matrix.
PROBED = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
)


@dataclass(frozen=True)
class Recipe:
    """An optimizer of whole models; called, it gives the laboratory's small run: a Qwen2 on Python's standard library.

    Args:
        name: name on the command line.
        description: one line for people.
        optimizer: options of every role that a model may have.
        aliases: other names under which `--set` knows it.
    """

    name: str
    description: str
    optimizer: Optimizer
    aliases: tuple[str, ...] = ()

    def __call__(self, *, steps: int | None = None, seed: int = 42, changes: Sequence[str] = ()) -> RunSpec:
        """The spec of a run of this many steps (150 by default) from a seed, with changes as of `optimizer_for`."""
        total = STEPS if steps is None else steps
        return RunSpec(
            name=self.name,
            objective=LanguageModel(),
            optimizer=changed(self, ("hidden", "embedding", "head", "vector"), changes),
            schedule=WarmupLinearDecay(total=total, warmup=min(WARMUP, total // 10), decay_fraction=DECAY),
            loop=LoopConfig(steps=total, eval_every=10, probe_every=10),
            seed=seed,
            probe=PROBED,
            description=self.description,
        )


RECIPES: Registry[Recipe] = Registry(
    "recipe",
    wanted="an optimizer (a subclass of torch.optim.Optimizer) or a recipe",
    fits=lambda found: isinstance(found, Recipe) or is_optimizer(found),
    group="polargrad.recipes",
)


def register(name: str, description: str, optimizer: Optimizer) -> None:
    """Add a recipe, from anywhere.

    Args:
        name: name on the command line.
        description: one line for people.
        optimizer: options of every role, such as `by_role` gives.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> sgd = {"rule": "polar", "lr": 0.1, "geometry": "frobenius"}
        >>> register("sgd+adamw", "Steepest descent on hidden matrices, AdamW on the rest.", by_role(sgd, *tables()))
        >>> spec_of("sgd+adamw", steps=20).learning_rates["hidden"]
        0.1
        >>> del RECIPES["sgd+adamw"]
    """
    RECIPES.add(name, Recipe(name, description, optimizer))


def spec_of(name: str, *, steps: int | None = None, seed: int = 42, changes: Sequence[str] = ()) -> RunSpec:
    """The small run of a recipe by its name, or of an optimizer class from outside; see `recipe` and `optimizer_for`.

    Raises:
        ValueError: if no recipe is called so, or a change does not fit.

    Example:
        >>> spec_of("adamw", steps=20).loop.steps
        20
    """
    return recipe(name)(steps=steps, seed=seed, changes=changes)


def optimizer_for(name: str, roles: Collection[str], changes: Sequence[str] = ()) -> Optimizer:
    """The options of a recipe for the roles that a model has.

    Args:
        name: name of the recipe.
        roles: roles of the model.
        changes: "ROLE.OPTION=VALUE", the value as in JSON or a bare word; roles joined by + change together, and * is
            all of them.

    Raises:
        ValueError: an unknown recipe, a role that the model does not have, or a change that cannot be read.
    """
    return changed(recipe(name), roles, changes)


def changed(recipe: Recipe, roles: Collection[str], changes: Sequence[str]) -> Optimizer:
    options = {role: chosen for role, chosen in recipe.optimizer.items() if role in roles}
    own: dict[str, Options] = {role: {} for role in options}
    for change in changes:
        named, option, value = parse_setting(change)
        for role in options if named == ("*",) else named:
            if role not in options:
                raise ValueError(f"{change!r}: the model has no role {role!r}; its roles are {', '.join(options)}")
            own[role][option] = parse_value(value)
    options = {role: {**without_accuracy(chosen, own[role]), **own[role]} for role, chosen in options.items()}
    if without := [role for role, chosen in options.items() if "lr" not in chosen]:
        raise ValueError(
            f"{recipe.name} has no learning rate of its own for {', '.join(without)}; give one, as with "
            f"--set {(recipe.aliases or (recipe.name,))[0]}.lr=0.001"
        )
    return options


def changes_of(recipe: Recipe, texts: Sequence[str], among: Sequence[Recipe]) -> list[str]:
    """The changes to one of several recipes, for `optimizer_for`, from NAME.OPTION=VALUE and NAME.ROLE.OPTION=VALUE.

    Args:
        recipe: the recipe.
        texts: changes to all of them; NAME is the recipe's name, and of an optimizer from a file also the file's or
            the class's.
        among: all of them.

    Raises:
        ValueError: a change whose recipe is not among them, or that fits several.

    Example:
        >>> adamw = recipe("adamw")
        >>> changes_of(adamw, ["adamw.lr=0.01", "adamw.head.lr=0.02"], [adamw])
        ['*.lr=0.01', 'head.lr=0.02']
    """
    found = []
    for text in texts:
        place, _, value = text.partition("=")
        fitting = [(n, one.name) for one in among for n in {one.name, *one.aliases} if place.startswith(f"{n}.")]
        longest = max((len(n) for n, _ in fitting), default=0)
        places = {owner: n for n, owner in fitting if len(n) == longest}
        if len(places) != 1:
            which = f"is of {' and of '.join(places)}" if places else "names none of the recipes"
            names = ", ".join((one.aliases or (one.name,))[0] for one in among)
            raise ValueError(f"--set {text} {which}; write NAME.OPTION=VALUE or NAME.ROLE.OPTION=VALUE with {names}")
        if recipe.name in places:
            option = place.removeprefix(f"{places[recipe.name]}.")
            found.append(f"{option if '.' in option else f'*.{option}'}={value}")
    return found


def recipe(name: str) -> Recipe:
    """A recipe by its name, or from outside of the package.

    Args:
        name: of a recipe; of an entry point of the group polargrad.recipes; or where an optimizer class or a `Recipe`
            is, as FILE.py:NAME or package.module:NAME. Such a class steps every parameter; with +RECIPE behind it, as
            in mine.py:Mine+adamw, the hidden matrices alone, and the rest as that recipe does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: nothing is called so, or it cannot be imported or is something else.

    Example:
        >>> recipe("torch.optim:RAdam+adamw").name
        'optim.RAdam+adamw'
    """
    where, rest = split_reference(name)
    key = RECIPES.key(where)
    found = RECIPES[key]
    if isinstance(found, Recipe):
        return found
    del RECIPES[key]
    OPTIMIZERS[key] = found
    return _of_class(key, found, rest)


def split_reference(name: str) -> tuple[str, str]:
    """The place of a class, and the recipe of the roles that it does not step; "" if it steps all, or for a plain name.

    Example:
        >>> split_reference("c++/mine.py:Mine+muon+polargrad"), split_reference("muon+polargrad")
        (('c++/mine.py:Mine', 'muon+polargrad'), ('muon+polargrad', ''))
    """
    if not is_reference(name):
        return name, ""
    where, colon, named = name.rpartition(":")
    first, _, rest = named.partition("+")
    return f"{where}{colon}{first}", rest


def _of_class(key: str, made: Any, rest: str) -> Recipe:
    """The recipe of an optimizer class: its own learning rate, or none, and its defaults for the rest."""
    where, _, named = key.rpartition(":")
    stem = where.removesuffix(".py").replace("\\", "/").rpartition("/")[2].rpartition(".")[2]
    lr = getattr(inspect.signature(made).parameters.get("lr"), "default", inspect.Parameter.empty)
    options: Options = {"rule": key}
    if isinstance(lr, int | float) and not isinstance(lr, bool):
        options["lr"] = float(lr)
    own: Optimizer = dict.fromkeys((*HIDDEN, "embedding", "head", "tied", "position", "vector"), options)
    summary = (inspect.getdoc(made) or "").partition("\n")[0]
    description = summary if made.__doc__ else f"{named} of {stem}."
    if rest:
        own = {**recipe(rest).optimizer, **dict.fromkeys(HIDDEN, options)}
        description = f"{named} on hidden matrices; on the rest {rest}."
    suffix = f"+{rest}" if rest else ""
    names = (stem, named, f"{stem}.{named}", named + suffix)
    return Recipe(f"{stem}.{named}{suffix}", description, own, tuple(dict.fromkeys(names)))


def by_role(
    hidden: Options,
    embedding: Options,
    head: Options | None = None,
    tied: Options | None = None,
    *,
    positions: Options | None = None,
    vectors: Options | None = None,
) -> Optimizer:
    """Options for every role, from those of the hidden matrices and of the tables of tokens.

    Args:
        hidden: options of hidden matrices, convolutions and experts.
        embedding: options of the table at the input.
        head: options of the table at the output; None: those of the embedding.
        tied: options of a table that is both; None: those of the head.
        positions: options of tables of positions; None: AdamW.
        vectors: options of norms, biases and scalars; None: AdamW without weight decay.
    """
    return {
        **dict.fromkeys(HIDDEN, hidden),
        "embedding": embedding,
        "head": head or embedding,
        "tied": tied or head or embedding,
        "position": positions or adamw(1e-2, betas=LONG, weight_decay=0.0),
        "vector": vectors or adamw(3e-2, betas=LONG, weight_decay=0.0),
    }


def everywhere(options: Options, *, hidden: float) -> Optimizer:
    """One rule for every role, as optimizers of other libraries need it."""
    at = {lr: {**options, "lr": lr} for lr in (hidden, 3e-2, 1e-2)}
    return by_role(at[hidden], at[3e-2], positions=at[1e-2], vectors=at[3e-2])


def adamw(lr: float, *, betas: tuple[float, float] = SHORT, weight_decay: float = 0.1) -> Options:
    """AdamW."""
    return {"rule": "adamw", "lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}


def tables(embedding: float = 5e-2, head: float = 5e-3) -> tuple[Options, Options]:
    """AdamW on embedding and head, at a rate each."""
    return adamw(embedding), adamw(head)


def polar(lr: float, momentum: float, **options: Plain) -> Options:
    """A polar group without weight decay."""
    return {"rule": "polar", "lr": lr, "momentum": momentum, "weight_decay": 0.0, **options}


def muon(lr: float, **changed: Plain) -> Options:
    """Five quintic Newton-Schulz steps on Nesterov momentum, scaled to AdamW's update size."""
    steps: Options = {"method": "newton-schulz", "max_steps": 5}
    return polar(lr, **{"momentum": 0.9, "nesterov": True, "scale": "rms", **steps, **changed})


def polargrad(lr: float, momentum: float = 0.5, **options: Plain) -> Options:
    """The nuclear norm times the polar factor; QDWH, since these tall gradients have small singular values."""
    return polar(lr, momentum, scale="nuclear", method="qdwh", max_steps=5, **options)


def normalized_tables() -> tuple[Options, Options, Options]:
    """Polar factors with normalized rows on embedding and head, and on a table that is both."""
    rows: Options = {"nesterov": True, "normalize_rows": 0.95, "method": "auto", "accuracy": 0.15}
    head, tied = (polar(lr, 0.7, scale="spectral", **rows) for lr in (0.056, 0.224))
    return polar(0.12, 0.5, scale="rms", **rows), head, tied


# The order is that of `polargrad list`: the best of docs/log.md's tuned comparisons first.
register(
    "muon+normalized-tables",
    "Muon on hidden matrices, row-normalized polar factors on embedding and head, AdamW on vectors.",
    by_role(muon(0.028, scale="spectral"), *normalized_tables(), vectors=adamw(6e-2, betas=LONG, weight_decay=0.0)),
)
register(
    "normuon+normalized-tables",
    "NorMuon at momentum 0.8 on hidden matrices, row-normalized polar factors on embedding and head, AdamW on vectors.",
    by_role(
        muon(0.028, momentum=0.8, scale="spectral", normalize_rows=0.95),
        *normalized_tables(),
        vectors=adamw(6e-2, betas=LONG, weight_decay=0.0),
    ),
)
register(  # inputs of entries +-1 have the head's outputs moved by its rate, root mean square
    "muon+normalized-rows",
    "Muon on hidden matrices, row-normalized polar factors on the head, AdamW on the rest; rates for any width.",
    by_role(
        muon(0.028, scale="spectral"),
        tables()[0],
        *(polar(lr, 0.7, nesterov=True, scale="spectral", normalize_rows=0.99, method="auto") for lr in (0.056, 0.224)),
    ),
)
register("muon+adamw", "Muon on hidden matrices, AdamW on embedding, head and vectors.", by_role(muon(5e-3), *tables()))
register("adamw", "AdamW on every parameter.", by_role(adamw(1e-3), *tables(6e-2, 1.5e-2)))
register(
    "whitened-muon+adamw",
    "Muon on hidden matrices whitened by running covariances of the gradient, AdamW on the rest.",
    by_role(muon(7e-3, whitening="two-sided"), *tables()),
)
register(
    "normuon+adamw",
    "Muon on hidden matrices with the rows of its factors evened out (NorMuon, arXiv 2510.05491), AdamW on the rest.",
    by_role(muon(5e-3, normalize_rows=0.95), *tables()),
)
register(
    "muon+polargrad",
    "Muon on hidden matrices, PolarGrad on embedding and head, AdamW on vectors (arXiv 2505.21799, section 6.4).",
    by_role(muon(4e-3), polargrad(0.2)),
)
register(
    "polargrad",
    "PolarGrad on every matrix, momentum first, AdamW on vectors.",
    by_role(polargrad(0.03, 0.95), polargrad(0.2)),
)
register(
    "polar-first",
    "PolarGrad on every matrix, the momentum taken of the polar factors, AdamW on vectors.",
    by_role(polargrad(0.03, 0.95, momentum_order="polar-first"), polargrad(0.2, momentum_order="polar-first")),
)
register(
    "adaptive",
    "Muon on hidden matrices with each one's nuclear norm over its own recent size, AdamW on the rest.",
    by_role(muon(5e-3, scale="adaptive-nuclear"), *tables()),
)
register(
    "group",
    "Muon on hidden matrices with their summed nuclear norm over its recent size, AdamW on the rest.",
    by_role(muon(5e-3, scale={"name": "adaptive-nuclear", "beta": 0.99}, scope="group"), *tables()),
)
register(
    "one-sided",
    "Muon on hidden matrices, one-sided PolarGrad on embedding and head, AdamW on vectors.",
    by_role(muon(3e-3), polar(0.2, 0.5, scale="nuclear", geometry="right-polar")),
)
register(
    "rownorm",
    "Muon on hidden matrices, normalized rows on embedding and head, AdamW on vectors.",
    by_role(muon(3e-3), polar(3e-2, 0.5, geometry="rows", scale="rms")),
)
register(
    "soap",
    "SOAP of pytorch-optimizer on every parameter (arXiv 2409.11321).",
    everywhere(
        {"rule": "pytorch_optimizer:SOAP", "betas": (0.95, 0.95), "precondition_frequency": 10, "weight_decay": 0.0},
        hidden=3e-3,
    ),
)
register(
    "shampoo",
    "Shampoo of pytorch-optimizer on every parameter, grafted onto RMSProp's steps (arXiv 2002.09018).",
    everywhere({"rule": "polargrad.lab.train.shampoo:Shampoo", "betas": (0.9, 0.95), "weight_decay": 0.0}, hidden=1e-3),
)


@dataclass(frozen=True)
class NamedComparison:
    """The comparison that `polargrad compare NAME` runs.

    Args:
        description: one line for people.
        recipes: names of the recipes.
        sweep: axes of the grid, as on the command line.
        steps: steps of every run.
        look_every: steps between evaluations, and between measurements of the gradients.
        model: in place of the demo's; its gradients are not measured.
    """

    description: str
    recipes: tuple[str, ...]
    sweep: tuple[str, ...]
    steps: int
    look_every: int
    model: LanguageModel | None = None

    def observed(self, spec: RunSpec) -> RunSpec:
        """A run of one of its recipes, evaluated and measured every `look_every` steps."""
        loop = dataclasses.replace(spec.loop, eval_every=self.look_every, probe_every=self.look_every)
        if self.model is not None:
            return dataclasses.replace(spec, objective=self.model, probe=(), loop=loop)
        return dataclasses.replace(spec, loop=loop)


COMPARISONS: Mapping[str, NamedComparison] = MappingProxyType(
    {
        "phenomena": NamedComparison(
            "AdamW, Muon and Muon + PolarGrad with and without warm-up at half to eight times their rates.",
            ("adamw", "muon+adamw", "muon+polargrad"),
            ("warmup=0,10,30", "rates=0.5,1,2,4,8"),
            steps=100,
            look_every=25,
        ),
        "valley": NamedComparison(
            "How wide the valley of good learning rates is, with and without warm-up, over a factor of 16.",
            ("adamw", "muon+adamw", "muon+normalized-tables", "whitened-muon+adamw", "polargrad", "adaptive", "group"),
            ("warmup=0,10", "rates=0.5,1,2,4,8"),
            steps=100,
            look_every=25,
            model=LanguageModel(**vars(architecture("mini")), batch=32),
        ),
    }
)

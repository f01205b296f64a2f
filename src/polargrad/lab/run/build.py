"""From a spec to the parts of a run: objective, optimizer, probe, and the record of where it runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch

from polargrad.geometry import GEOMETRIES
from polargrad.lab.options import values_of
from polargrad.lab.run.environment import environment
from polargrad.lab.run.spec import LanguageModel, RunSpec, Text
from polargrad.lab.train import MatrixProbe
from polargrad.lab.train.optimizers import OPTIMIZERS, outside_rules
from polargrad.lab.train.optimizers import build_optimizer as make_optimizer
from polargrad.lab.train.parallel import Parallel
from polargrad.lab.train.progress import tokenization_progress, vocabulary_progress
from polargrad.linalg import METHODS
from polargrad.linalg.registry import Registry
from polargrad.optim import parameter_groups
from polargrad.optim.matrix_view import VIEW_OPTIONS
from polargrad.optim.roles import roles
from polargrad.outside import origin

if TYPE_CHECKING:
    from polargrad.lab.lm import EncodedCorpus, Tokenizer
    from polargrad.lab.train import Objective


@dataclass(frozen=True)
class BuiltRun:
    """The parts of a run.

    Args:
        spec: what they were built from.
        objective: what is minimized.
        optimizer: over the objective's parameters.
        probe: measures matrices during the run; None where the spec names none.
        environment: versions, machine and data, as plain data.
        parallel: the processes; None for one.
    """

    spec: RunSpec
    objective: Objective
    optimizer: torch.optim.Optimizer
    probe: MatrixProbe | None
    environment: Mapping[str, Any]
    parallel: Parallel | None = None

    @property
    def configuration(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the specification, the data and the code from outside."""
        data = {key: self.environment.get(key) for key in ("corpus_checksum", "tokenizer_checksum")}
        return {**self.spec.content, **data, "code": code_checksums(self.environment)}


def build(spec: RunSpec, parallel: Parallel | None = None) -> BuiltRun:
    """The parts of a run.

    Args:
        spec: the run.
        parallel: the processes to put a language model on; None: this one alone.

    Raises:
        ValueError: the spec does not fit its model, its data or the processes.
    """
    code = outside_code(spec)
    check(spec, parallel)
    objective, facts = build_objective(spec, parallel)
    if isinstance(spec.objective, LanguageModel):
        group = None if parallel is None else parallel.optimizer_group
        optimizer = build_optimizer(spec, objective.module, group)
    else:
        from polargrad.lab.matrix.training import ProblemObjective
        from polargrad.lab.matrix.training import build_optimizer as build_for_matrices

        assert isinstance(objective, ProblemObjective)
        optimizer = build_for_matrices(spec.optimizer, objective)
    probe = _build_probe(spec, objective.module, optimizer)
    where = {**environment(), **facts, **({"code": code} if code else {})}
    return BuiltRun(spec, objective, optimizer, probe, where, parallel)


def check(spec: RunSpec, parallel: Parallel | None = None, *, here: bool = True) -> None:
    """Refuse what is known to be wrong with a run before any work; its model is built without numbers for that.

    Args:
        spec: the run.
        parallel: the processes; None: this one alone.
        here: whether it is to run on this machine, whose device and memory count then.

    Raises:
        ValueError: options of the optimizer that are refused, roles or matrices that the model does not have, a batch
            that the processes do not divide, a device that is not there, or more weights than its memory has room for.
    """
    model = spec.objective
    if not isinstance(model, LanguageModel):
        if parallel is not None and not parallel.is_single:
            raise ValueError(f"{spec.name} is a matrix problem, which one process solves; leave --parallel out")
        return
    (parallel or Parallel()).check_batch(model.batch)
    module = _skeleton(model)
    if here:
        if parallel is None or parallel.is_single:
            torch_device(model.device)
        _check_memory(model, module, parallel)
    optimizer = build_optimizer(spec, module)
    if parallel is not None and not parallel.is_single and (outside := outside_rules(spec.optimizer)):
        raise ValueError(f"{outside[0]} works on one process; leave --parallel out")
    _build_probe(spec, module, optimizer)


def pinned(specs: Iterable[RunSpec]) -> tuple[RunSpec, ...]:
    """The runs with the commit that a data set of the hub has now, one for all of them; others as they are.

    Raises:
        OSError, ValueError: the data set is not there, or the hub cannot be reached.
    """
    found, commits = [], {}
    for spec in specs:
        model = spec.objective
        if isinstance(model, LanguageModel):
            from polargrad.lab.lm.sources import at_commit

            where = commits[model.corpus] = commits.get(model.corpus) or at_commit(model.corpus)
            spec = spec if where == model.corpus else replace(spec, objective=replace(model, corpus=where))
        found.append(spec)
    return tuple(found)


@lru_cache(maxsize=2)
def _skeleton(model: LanguageModel) -> torch.nn.Module:
    """The model without numbers; the runs of a comparison share it."""
    return cast(torch.nn.Module, model.build(device="meta"))


def _check_memory(model: LanguageModel, module: torch.nn.Module, parallel: Parallel | None) -> None:
    """Refuse a model whose weights and gradients, or a batch whose tokens, are larger than all of the memory."""
    size = 2 * sum(p.numel() for p in module.parameters()) * model.dtype.itemsize
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**62
    if (parallel is None or parallel.is_single) and torch.device(model.device).type == "cuda":
        room = torch.cuda.get_device_properties(torch.device(model.device)).total_memory
    if model.batch * (model.sequence + 1) * 8 > room:
        raise ValueError(
            f"a batch of {model.batch} sequences of {model.sequence} tokens has no room in the memory; give a "
            "smaller --batch or --sequence"
        )
    if size > room and (parallel is None or parallel.sizes[1] * parallel.sizes[2] == 1):
        raise ValueError(
            f"weights and gradients take {size / 1e9:,.0f} GB, and this machine has {room / 1e9:,.0f}; give smaller "
            "values of --vocabulary, --hidden-size or --layers, or divide the model with --parallel fsdp"
        )


def build_objective(spec: RunSpec, parallel: Parallel | None = None) -> tuple[Objective, Mapping[str, Any]]:
    """The objective of a spec and what the environment's record should say of its data.

    Args:
        spec: the run; its seed draws the initial weights and the batches.
        parallel: the processes to put a language model on; None: this one alone.

    Returns:
        The objective, and plain facts: the corpus, its checksum, the number of parameters.

    Raises:
        ValueError: the data does not suffice, as with a corpus shorter than one sequence.
    """
    if isinstance(spec.objective, LanguageModel):
        return _language_model(spec.objective, spec.seed, parallel or Parallel())
    return _matrix_problem(spec)


def _matrix_problem(spec: RunSpec) -> tuple[Objective, Mapping[str, Any]]:
    from polargrad.lab.matrix.training import ProblemObjective

    assert not isinstance(spec.objective, LanguageModel)
    problem = spec.objective.build(spec.seed)
    evaluations = spec.loop.probe_every // spec.loop.eval_every if spec.loop.eval_every else 1
    built = ProblemObjective(problem, residual_every=max(1, evaluations) if spec.loop.probe_every else 0)
    facts = {
        "parameters": sum(value.numel() for value in problem.start.values()),
        "minimum": problem.minimum,
        "smoothness": problem.smoothness,
        "strong_convexity": problem.strong_convexity,
    }
    return built, facts


def _language_model(model: LanguageModel, seed: int, parallel: Parallel) -> tuple[Objective, Mapping[str, Any]]:
    from polargrad.lab import lm

    text = Text(**values_of(Text, model))
    with parallel.main_process_first():  # which leaves the encoded text in the cache
        data, encoded, tokenizer = _corpus(text, model.vocabulary)
    decoder = model.build(seed=seed)
    module = cast(torch.nn.Module, decoder)  # whose `to` is better typed
    facts = {**data, "parameters": sum(parameter.numel() for parameter in module.parameters()), **parallel.metadata()}
    module.to(model.dtype)
    if parallel.is_single:
        module.to(torch_device(model.device))
    if model.activation_checkpointing:
        decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if model.compiled:
        module.compile()  # in place: parameters keep their names
    built = lm.LanguageModelObjective(
        module,
        encoded.train,
        encoded.held_out,
        batch_size=model.batch,
        sequence=model.sequence,
        seed=seed,
        evaluation_windows=model.evaluation_windows,
        shuffle=model.shuffle,
        accumulation=model.accumulation,
        autocast=torch.bfloat16 if model.precision == "bfloat16-mixed" else None,
        compiled=model.compiled and parallel.sizes[2] == 1,  # which was not tried with tensor-parallel heads
        forward=parallel.shard(module, lm.tensor_plan(module, parallel.sizes[2]) if parallel.sizes[2] > 1 else None),
        group=parallel.data_group,
    )
    if built.batches.windows < model.batch:
        raise ValueError(
            f"the training text of {data['corpus']} has {built.batches.windows} sequences of {model.sequence} "
            f"tokens, fewer than a batch of {model.batch}: give more text, a smaller batch or shorter sequences"
        )
    built.tokenizer = tokenizer
    return built, facts


@lru_cache(maxsize=2)
def _corpus(text: Text, vocabulary: int) -> tuple[Mapping[str, Any], EncodedCorpus, Tokenizer]:
    """Facts of a corpus for the records, its tokens and tokenizer; the runs of a comparison read and check it once."""
    from polargrad.lab import lm
    from polargrad.lab.lm.sources import STANDARD_LIBRARY

    source = lm.open_source(text.corpus, subset=text.subset, split=text.split, field=text.field).limited(text.documents)
    if text.tokenizer:
        words = lm.load_tokenizer(text.tokenizer)
    else:
        with vocabulary_progress(source.name, vocabulary) as progress:
            words = lm.train_bpe(source, vocabulary, held_out=text.held_out, progress=progress)
    with tokenization_progress(source.name) as progress:
        encoded = lm.tokenize(source, words, held_out=text.held_out, progress=progress)
    # The standard library's identity is a checksum of its documents, whatever vocabulary they are written in.
    checksum = source.identity if text.corpus == STANDARD_LIBRARY else encoded.checksum
    facts = {"corpus": source.name, "corpus_checksum": checksum, "tokenizer_checksum": words.checksum}
    return {**facts, "corpus_tokens": len(encoded.train.tokens)}, encoded, words


def torch_device(name: str) -> torch.device:
    """The device that a spec names.

    Raises:
        ValueError: torch has no such device, or this machine has not.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}, which torch does not know; give cpu or cuda") from error
    if device.type == "cpu":
        return device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type != device.type:
        here = "no accelerator" if accelerator is None else f"the accelerator {accelerator.type}"
        raise ValueError(f"device is {name!r}, and torch sees {here} on this machine; give device cpu, or auto")
    return device


def build_optimizer(spec: RunSpec, module: torch.nn.Module, process_group: Any = None) -> torch.optim.Optimizer:
    """The optimizer of a spec over a model's parameters, one group for each role: PolarGrad, or one from outside.

    A group has the spec's options and, for the rest, the optimizer's own defaults; the defaults that `parameter_groups`
    keeps for each role stay out, so that a spec does not change its meaning when those do.

    Args:
        spec: its optimizer is built.
        module: whose parameters it steps.
        process_group: ranks that share the work of a step, see `PolarGrad`.

    Raises:
        ValueError: if a role of the model has no options in the spec, or the other way round.
    """
    groups = parameter_groups(module)
    present = {group["role"] for group in groups}
    if present != set(spec.optimizer):
        raise ValueError(
            f"the model has the roles {', '.join(sorted(present))}, and {spec.name} has options for "
            f"{', '.join(sorted(spec.optimizer))}; give options for just the roles of the model"
            + (
                ", in which a table that is embedding and head is tied"
                if "tied" in present ^ set(spec.optimizer)
                else ""
            )
        )
    built = []
    for group in groups:
        chosen = spec.optimizer[group["role"]]
        # How the weights are stored is a fact of the model and not a default; AdamW has no use for it.
        facts = ("params", "role", *VIEW_OPTIONS) if chosen.get("rule", "polar") == "polar" else ("params", "role")
        built.append({**{key: group[key] for key in facts if key in group}, **chosen})
    return make_optimizer(built, process_group)


def code_checksums(environment: Mapping[str, Any]) -> dict[str, str]:
    """The checksums of the code from outside that an environment's record names, as far as it can be read."""
    checksums: dict[str, str] = {}
    named = environment.get("code")
    for name, code in named.items() if isinstance(named, Mapping) else ():
        if isinstance(code, Mapping):
            beside = code.get("beside")
            checksums |= {name: str(code.get("sha256")), **(beside if isinstance(beside, Mapping) else {})}
    return checksums


def outside_code(spec: RunSpec) -> dict[str, dict[str, Any]]:
    """The code from outside of the package that a run uses: file and checksum by the name in the spec.

    Code here is an optimizer, a geometry, a polar method, a matrix problem or a source of text. Of what its file
    imports, modules beside it are looked at; see `polargrad.outside.origin`.

    Raises:
        FileNotFoundError: a file that the spec names is not there.
        ValueError: it cannot be imported.
    """
    chosen: list[tuple[Any, Registry[Any]]] = []
    for options in spec.optimizer.values():
        geometry = options.get("geometry")
        inner = geometry.get("method") if isinstance(geometry, Mapping) else None
        chosen += [(options.get("rule"), OPTIMIZERS), (geometry, GEOMETRIES)]
        chosen += [(options.get("method"), METHODS), (inner, METHODS)]
    if isinstance(spec.objective, LanguageModel):
        from polargrad.lab.lm.sources import SOURCES

        if ":" in spec.objective.corpus or SOURCES.is_announced(spec.objective.corpus):
            chosen.append((spec.objective.corpus, SOURCES))
    else:
        from polargrad.lab.matrix import PROBLEMS

        chosen.append((spec.objective.kind, PROBLEMS))
    found = {}
    for value, table in chosen:
        name = value.get("name") if isinstance(value, Mapping) else value
        key = table.key(name) if isinstance(name, str) else ""
        if key in table and not table[key].__module__.startswith("polargrad."):
            found[key] = origin(table[key])
    return found


def _build_probe(spec: RunSpec, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> MatrixProbe | None:
    """The probe of the spec's matrices: of their gradients, in a model also of momenta and steps; None without any."""
    if not spec.probe:
        return None
    named = dict(module.named_parameters())
    if unknown := [name for name in spec.probe if name not in named]:
        matrices = ", ".join(name for name, parameter in named.items() if parameter.ndim == 2)
        raise ValueError(f"cannot probe {unknown[0]!r}, which the model does not have; its matrices are {matrices}")
    chosen = {name: named[name] for name in spec.probe}
    stepped = optimizer if isinstance(spec.objective, LanguageModel) else None
    return MatrixProbe(chosen, roles(module), optimizer=stepped)

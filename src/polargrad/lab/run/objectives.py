"""From the kind of objective in a spec to the objective that the training loop minimizes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from polargrad.lab.run.preparation import preparation
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train.parallel import Parallel

if TYPE_CHECKING:
    from polargrad.lab.lm import EncodedCorpus
    from polargrad.lab.train import Objective


def build_objective(spec: RunSpec, parallel: Parallel | None = None) -> tuple[Objective, Mapping[str, Any]]:
    """The objective of a spec and what the environment's record should say of its data.

    Args:
        spec: the run; its seed draws the initial weights and the batches.
        parallel: the processes to put a language model on; None: this one alone.

    Returns:
        The objective, and plain facts: the corpus, its checksum, the number of parameters.

    Raises:
        ValueError: if the data does not suffice, as with a corpus shorter than one sequence, or cannot be divided among
            the processes.
    """
    if isinstance(spec.objective, LanguageModel):
        return _language_model(spec.objective, spec.seed, parallel or Parallel())
    if parallel is not None and not parallel.is_single:
        raise ValueError(f"{spec.name} is a matrix problem, which one process solves; leave --parallel out")
    return _matrix_problem(spec)


def _matrix_problem(spec: RunSpec) -> tuple[Objective, Mapping[str, Any]]:
    from polargrad.lab.matrix import ProblemObjective

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


def _language_model(objective: LanguageModel, seed: int, parallel: Parallel) -> tuple[Objective, Mapping[str, Any]]:
    from polargrad.lab import lm

    parallel.check_batch(objective.batch)
    with parallel.main_process_first():  # which leaves the encoded text in the cache
        data, encoded = _corpus(
            objective.corpus,
            objective.vocabulary,
            objective.tokenizer,
            objective.subset,
            objective.split,
            objective.field,
            objective.documents,
            objective.held_out,
        )
    model = objective.architecture().build(seed=seed)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    _fit_out(model, objective, alone=parallel.is_single)
    tensor_ranks = parallel.sizes[2]
    forward = parallel.shard(model, lm.tensor_plan(model, tensor_ranks) if tensor_ranks > 1 else None)
    built = lm.LanguageModelObjective(
        model,
        encoded.train,
        encoded.held_out,
        batch_size=objective.batch,
        sequence=objective.sequence,
        seed=seed,
        evaluation_windows=objective.evaluation_windows,
        shuffle=objective.shuffle,
        accumulation=objective.accumulation,
        autocast=torch.bfloat16 if objective.precision == "bfloat16-mixed" else None,
        forward=forward,
        group=parallel.data_group,
    )
    if built.batches.windows < objective.batch:
        raise ValueError(
            f"the training text of {data['corpus']} has {built.batches.windows} sequences of {objective.sequence} "
            f"tokens, fewer than a batch of {objective.batch}: give more text, a smaller batch or shorter sequences"
        )
    facts = {
        **data,
        "parameters": numbers,
        **parallel.metadata(),
    }
    return built, facts


def _fit_out(model: torch.nn.Module, objective: LanguageModel, *, alone: bool) -> None:
    """Put a model in its precision and, where one process runs it, on its device; have it computed as asked."""
    from transformers import PreTrainedModel

    if objective.precision == "bfloat16":
        model.to(torch.bfloat16)
    if alone:
        model.to(torch_device(objective.device))
    if objective.activation_checkpointing:
        assert isinstance(model, PreTrainedModel)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if objective.compiled:
        model.compile()  # in place: parameters keep their names


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


@lru_cache(maxsize=2)
def _corpus(
    where: str,
    vocabulary: int,
    tokenizer: str = "",
    subset: str = "",
    split: str = "train",
    field: str = "text",
    documents: int = 0,
    held_out: float = 0.05,
) -> tuple[Mapping[str, Any], EncodedCorpus]:
    """What to record of a corpus, and its tokens; the runs of a comparison read and check it once."""
    from polargrad.lab import lm
    from polargrad.lab.lm.sources import STANDARD_LIBRARY

    source = lm.open_source(where, subset=subset, split=split, field=field).limited(documents)
    words = lm.load_tokenizer(tokenizer) if tokenizer else lm.train_bpe(source, vocabulary, held_out=held_out)
    with preparation(source.name) as progress:
        encoded = lm.tokenize(source, words, held_out=held_out, progress=progress)
    # The standard library's identity is a checksum of its documents, whatever vocabulary they are written in.
    checksum = source.identity if where == STANDARD_LIBRARY else encoded.checksum
    facts = {"corpus": source.name, "corpus_checksum": checksum, "tokenizer_checksum": words.checksum}
    return {**facts, "corpus_tokens": len(encoded.train.tokens)}, encoded

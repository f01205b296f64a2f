"""From the kind of objective in a spec to the objective that the training loop minimizes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from polargrad.experiments.spec import LanguageModel, RunSpec
from polargrad.train.parallel import Parallel

if TYPE_CHECKING:
    from polargrad.lm import EncodedCorpus
    from polargrad.train import Objective


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
    if parallel is not None and not parallel.alone:
        raise ValueError(f"{spec.name} is a matrix problem, which one process solves; leave --parallel out")
    return _matrix_problem(spec)


def _matrix_problem(spec: RunSpec) -> tuple[Objective, Mapping[str, Any]]:
    from polargrad.experiments.matrix.objectives import problem_of
    from polargrad.problems import ProblemObjective

    assert not isinstance(spec.objective, LanguageModel)
    problem = problem_of(spec.objective, spec.seed)
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
    from polargrad import lm

    parallel.check_batch(objective.batch)
    with parallel.chief_first():  # which leaves the encoded text in the cache
        corpus, checksum, encoded = _corpus(objective.corpus, objective.vocabulary)
    model = lm.decoder(
        objective.family,
        hidden_size=objective.hidden_size,
        layers=objective.layers,
        heads=objective.heads,
        kv_heads=objective.kv_heads,
        mlp=objective.mlp,
        vocab_size=objective.vocabulary,
        sequence=objective.sequence,
        seed=seed,
        untied=objective.untied,
    )
    numbers = sum(parameter.numel() for parameter in model.parameters())
    forward = parallel.place(model)
    built = lm.LanguageModelObjective(
        model,
        encoded.train,
        encoded.held_out,
        batch_size=objective.batch,
        sequence=objective.sequence,
        seed=seed,
        evaluation_windows=objective.evaluation_windows,
        forward=forward,
        group=parallel.data_group,
    )
    facts = {
        "corpus": corpus,
        "corpus_checksum": checksum,
        "corpus_tokens": len(encoded.train.tokens),
        "parameters": numbers,
        **parallel.facts(),
    }
    return built, facts


@lru_cache(maxsize=2)
def _corpus(name: str, vocabulary: int) -> tuple[str, str, EncodedCorpus]:
    """Name, checksum and tokens of a corpus; the runs of a comparison read and check it once."""
    from polargrad import lm

    corpus = lm.standard_library() if name == "standard-library" else lm.text_files(name)
    return corpus.name, corpus.checksum, lm.encode(corpus, lm.train_bpe(corpus, vocabulary))

"""The trained model of a run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polargrad.lab.run.build import build
from polargrad.lab.run.folder import CHECKPOINTS, Run, read_run
from polargrad.lab.run.spec import LanguageModel
from polargrad.lab.train.checkpoint import Checkpoints
from polargrad.lab.train.optimizers import switching_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from polargrad.lab.lm import Tokenizer


@dataclass(frozen=True)
class Trained:
    """A trained language model.

    Args:
        run: the run that trained it.
        module: the decoder, on the CPU.
        tokenizer: of its text.
        step: finished steps.
    """

    run: Run
    module: PreTrainedModel
    tokenizer: Tokenizer
    step: int


def trained(path: str | Path) -> Trained:
    """The language model of a run as its newest checkpoint holds it, with the weights that evaluations use.

    Raises:
        FileNotFoundError: the folder is not a run's, or has no checkpoint.
        ValueError: the run is not one of a language model, or its text or its code is not what it was.
    """
    run = read_run(path)
    spec = run.spec
    if not isinstance(spec.objective, LanguageModel):
        raise ValueError(f"{path} is a run of a matrix problem, which has no model; give one of a language model")
    model = spec.objective
    precision = "float32" if model.precision == "tf32" else model.precision  # a GPU's
    model = dataclasses.replace(model, device="cpu", compiled=False, precision=precision)
    here = dataclasses.replace(spec, objective=model)
    built = build(here)
    configuration = dataclasses.replace(built, spec=spec).configuration
    checkpoint = Checkpoints(Path(path) / CHECKPOINTS, configuration).newest()
    if checkpoint is None:
        raise FileNotFoundError(
            f"{path} has no checkpoint; runs of a search or a grid keep none: `polargrad run {path}/spec.json` makes "
            "the run again and keeps its last"
        )
    objective: Any = built.objective
    checkpoint.restore(objective.module, built.optimizer, objective)
    for part in switching_parts(built.optimizer):
        part.eval()
    return Trained(run, objective.module, objective.tokenizer, checkpoint.step)


def model_card(found: Trained, name: str) -> str:
    """The card of an exported model, in Markdown: on what it was trained, for how long, and its loss."""
    run, model = found.run, found.run.spec.objective
    assert isinstance(model, LanguageModel)
    ends = [record.get(model.metric) for record in run.of_kind("eval") if record["step"] == found.step]
    loss = f" Its {model.metric_label} is {ends[-1]:.4f} {model.metric_unit}." if ends and ends[-1] is not None else ""
    return (
        f"# {name}\n\n"
        f"A {model.family} decoder of {run.environment.get('parameters', 0):,} parameters with random initial weights, "
        f"trained by polargrad's recipe {run.spec.recipe} on {run.environment.get('corpus', model.corpus)} for "
        f"{found.step} steps of {model.batch} sequences of {model.sequence} tokens.{loss}\n\n"
        f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model, tokenizer = AutoModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")\n'
        f"```\n\nThe run, with content hash {run.spec.content_hash}:\n\n```json\n{run.spec.to_json()}```\n"
    )

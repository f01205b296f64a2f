"""The optimizer of a whole model from options by role: PolarGrad's rules, and optimizer classes from outside.

The `rule` of a role is "polar" or "adamw", which one `PolarGrad` steps, or a reference to a subclass of
`torch.optim.Optimizer`: FILE.py:CLASS or package.module:CLASS. Roles of one rule share an optimizer.

An optimizer that evaluates other weights than it trains, such as their average, has the methods that schedule-free ones
have: `eval` puts the weights for evaluation into the parameters, `train` those that are trained.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from polargrad.lab.train.checkpoint import check_plain
from polargrad.linalg.registry import Registry, unknown_name
from polargrad.optim import PolarGrad
from polargrad.optim.matrix_view import VIEW_OPTIONS
from polargrad.optim.options import OPTIONS
from polargrad.optim.update import STEP_RULES


def is_optimizer(found: Any) -> bool:
    """Whether something is an optimizer class."""
    return isinstance(found, type) and issubclass(found, Optimizer)


OPTIMIZERS: Registry[type[Optimizer]] = Registry(
    "rule", wanted="an optimizer (a subclass of torch.optim.Optimizer)", fits=is_optimizer
)
OURS = ("polar", "adamw")
# What a group says of its parameters, which other optimizers have no use for.
_FACTS = ("params", "param_names", "role", *VIEW_OPTIONS, "rule")
# Entries of a parameter that a trial is made with, in each dimension, and its steps before and after a checkpoint.
_TRIAL, _STEPS = 6, 4


def outside_rules(optimizer: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The rules of an optimizer, given by role, that come from outside.

    Example:
        >>> outside_rules({"hidden": {"rule": "mine.py:Mine"}, "vector": {"rule": "adamw"}})
        ['mine.py:Mine']
    """
    return [rule for rule in dict.fromkeys(map(_rule, optimizer.values())) if rule not in OURS]


def switching_parts(optimizer: Optimizer) -> list[Any]:
    """The optimizers, of one or of the parts of a `CombinedOptimizer`, that have methods `eval` and `train`."""
    parts = optimizer.parts if isinstance(optimizer, CombinedOptimizer) else [optimizer]
    return [part for part in parts if callable(getattr(part, "eval", None)) and callable(getattr(part, "train", None))]


@contextlib.contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """Have the weights in the parameters with which the model is evaluated and used; afterwards the trained ones again.

    The trained weights are copied before and put back to the last bit, so that an evaluation changes no later step.

    Example:
        >>> W = Parameter(torch.ones(2))
        >>> with evaluation_weights(torch.optim.SGD([W], lr=0.1)):  # has no others
        ...     W.tolist()
        [1.0, 1.0]
    """
    parts = switching_parts(optimizer)
    held = [(p, p.detach().clone()) for part in parts for group in part.param_groups for p in group["params"]]
    try:
        for part in parts:
            part.eval()
        yield
    finally:
        for part in parts:
            part.train()
        with torch.no_grad():
            for p, trained in held:
                p.copy_(trained)


def needs_loss(optimizer: Optimizer) -> bool:
    """Whether a step rule of PolarGrad depends on the loss, so that `step` is to be called with a closure.

    Example:
        >>> rule = {"name": "capped-polyak", "minimum": 0.0}
        >>> needs_loss(PolarGrad([Parameter(torch.eye(2))], momentum=0.0, step_rule=rule))
        True
    """
    parts = optimizer.parts if isinstance(optimizer, CombinedOptimizer) else [optimizer]
    groups = chain.from_iterable(part.param_groups for part in parts if isinstance(part, PolarGrad))
    rules = [group["step_rule"] for group in groups if "step_rule" in group]
    return any(STEP_RULES[rule["name"] if isinstance(rule, Mapping) else rule].needs_loss for rule in rules)


def build_optimizer(groups: Sequence[Mapping[str, Any]], process_group: Any = None) -> Optimizer:
    """The optimizer of parameter groups with a "rule" each: one, or a `CombinedOptimizer` of one for each kind.

    A class from outside gets the options that its constructor names. One that differs between roles has to be an option
    of its parameter groups. A trial on small matrices checks that it goes on from its own state dict as if it had not
    been stopped.

    Args:
        groups: parameters, named or not, with a "role" and options.
        process_group: ranks that share the work of a step, see `PolarGrad`.

    Raises:
        FileNotFoundError: the file of a class is not there.
        ValueError: a rule that is no optimizer, options that it does not take, a step that needs a closure, a state
            that is not plain data or does not hold all that the next step depends on.
    """
    for group in groups:  # PolarGrad itself leaves alone what schedulers and frameworks keep in a group
        rule = _rule(group)
        if rule in OURS and (unknown := sorted(set(group) - OPTIONS[rule] - {*_FACTS, "initial_lr"})):
            raise unknown_name(f"option of rule {rule!r}:", unknown[0], sorted(OPTIONS[rule]))
    parts: list[Optimizer] = []
    if ours := [dict(group) for group in groups if _rule(group) in OURS]:
        parts.append(PolarGrad(ours, process_group=process_group))
    for rule in dict.fromkeys(_rule(group) for group in groups if _rule(group) not in OURS):
        if process_group is not None:
            raise ValueError(f"{rule} works on one process; leave --parallel out")
        parts.append(_outside(rule, [group for group in groups if _rule(group) == rule]))
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


class CombinedOptimizer(Optimizer):
    """Several optimizers over different parameters as one: their groups one after the other, one state dict.

    Args:
        parts: the optimizers, stepped in this order.

    Example:
        >>> W, b = Parameter(torch.eye(2)), Parameter(torch.ones(2))
        >>> both = CombinedOptimizer([torch.optim.SGD([W], lr=0.1), torch.optim.Adam([b], lr=0.01)])
        >>> [group["lr"] for group in both.param_groups]
        [0.1, 0.01]
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self.param_groups = [group for part in parts for group in part.param_groups]  # the very same objects
        self.state = _States(self.parts)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def skipped(self) -> int:
        """Updates that PolarGrad skipped as not finite."""
        return sum(int(getattr(part, "skipped", 0)) for part in self.parts)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A step of every part; a closure is evaluated once, with gradients enabled."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        known: Any = None if closure is None else lambda: loss
        for part in self.parts:
            part.step(known) if isinstance(part, PolarGrad) else part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state dicts of all parts as one, parameters numbered through."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for part in self.parts:
            one = part.state_dict()
            state |= {first + number: entry for number, entry in one["state"].items()}
            groups += [{**group, "params": [first + n for n in group["params"]]} for group in one["param_groups"]]
            first += sum(len(group["params"]) for group in one["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave.

        Raises:
            ValueError: the groups differ.
        """
        groups = list(state_dict["param_groups"])
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("the state is of another optimizer: its groups hold other numbers of parameters")
        for part in self.parts:
            own = [groups.pop(0) for _ in part.param_groups]
            keys = list(chain.from_iterable(group["params"] for group in own))
            state = {key: state_dict["state"][key] for key in keys if key in state_dict["state"]}
            part.load_state_dict({"state": state, "param_groups": own})
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class _States(Mapping[Tensor, Any]):
    """The state of every parameter, wherever its optimizer keeps it by now."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = parts

    def __getitem__(self, parameter: Tensor) -> Any:
        return next(part.state[parameter] for part in self._parts if parameter in part.state)

    def __contains__(self, parameter: object) -> bool:
        return any(parameter in part.state for part in self._parts)

    def __iter__(self) -> Iterator[Tensor]:
        return chain.from_iterable(part.state for part in self._parts)

    def __len__(self) -> int:
        return sum(len(part.state) for part in self._parts)


def _rule(group: Mapping[str, Any]) -> str:
    return str(group.get("rule", "polar"))


def _outside(rule: str, groups: Sequence[Mapping[str, Any]]) -> Optimizer:
    key = OPTIMIZERS.key(rule)
    if key not in OPTIMIZERS:
        raise unknown_name("rule", rule, (*OURS, "FILE.py:CLASS"))
    made = OPTIMIZERS[key]
    named, required = _options_of(made)
    given = [{option: value for option, value in group.items() if option not in _FACTS} for group in groups]
    if unknown := [option for own in given for option in own if option not in named]:
        if not named:
            raise ValueError(f"{rule} takes no options, and {unknown[0]} is given; leave it out")
        raise ValueError(f"{rule}: {unknown_name('option', unknown[0], named)}")
    shared = {o: v for o, v in given[0].items() if all(o in own and own[o] == v for own in given)}
    varied = {option for own in given for option in own if option not in shared}
    needed = {option: given[0][option] for option in varied & required if option in given[0]}
    step = inspect.signature(made.step).parameters
    if "closure" in step and step["closure"].default is inspect.Parameter.empty:
        raise ValueError(f"{rule} needs a closure in each step, which the training loop does not give")

    def made_of(parameters: Sequence[Sequence[Tensor]]) -> Optimizer:
        own = [
            {"params": list(p), "role": group.get("role", ""), **{key: own[key] for key in own if key in varied}}
            for p, group, own in zip(parameters, groups, given, strict=True)
        ]
        return made(own, **shared, **needed)  # pyright: ignore[reportCallIssue]

    def takes_matrices(parameters: Sequence[Sequence[Tensor]]) -> bool:
        """Whether it can be made of the matrices alone, and has refused the vectors beside them."""
        matrices = [[p for p in each if p.ndim > 1] for each in parameters]
        try:
            return any(p.ndim < 2 for each in parameters for p in each) and bool(made_of(matrices))
        except (Exception, SystemExit):
            return False

    def make(parameters: Sequence[Sequence[Tensor]]) -> Optimizer:
        try:
            optimizer = made_of(parameters)
        except (Exception, SystemExit) as error:
            options = ", ".join(f"{option}={value!r}" for option, value in shared.items())
            hint = f"; {rule}+adamw steps the hidden matrices alone" if takes_matrices(parameters) else ""
            raise ValueError(f"{rule} cannot be made with {options}: {_told(error)}{hint}") from error
        if fixed := sorted(varied - set(optimizer.defaults)):
            raise ValueError(f"{rule} has one {fixed[0]} for all roles, and they differ in it; give one value")
        return optimizer

    _check_resumable(rule, make, groups)
    return make([_tensors(group) for group in groups])


def _tensors(group: Mapping[str, Any]) -> list[Tensor]:
    return [entry[1] if isinstance(entry, tuple) else entry for entry in group["params"]]


def _options_of(made: type[Optimizer]) -> tuple[list[str], set[str]]:
    """The options that the constructor names, its base classes' too where it passes others on; and the required."""
    named: list[str] = []
    required: set[str] = set()
    for base in made.__mro__:
        if base is Optimizer or "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[2:]
        own = [entry for entry in parameters if entry.kind not in (entry.VAR_KEYWORD, entry.VAR_POSITIONAL)]
        named += [entry.name for entry in own]
        required |= {entry.name for entry in own if entry.default is entry.empty}
        if all(entry.kind is not entry.VAR_KEYWORD for entry in parameters):
            break
    return named, required


def _check_resumable(
    rule: str, make: Callable[[Sequence[Sequence[Tensor]]], Optimizer], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse an optimizer that does not go on from its state dict as if it had not been stopped.

    Tried on one small parameter for each group; where it cannot step such ones, a step is tried at their full size, and
    the rest is left to the run.

    Raises:
        ValueError: it cannot step, or does not step what it was given; or the state is not plain data, cannot be
            loaded, or leaves out what the next step depends on.
    """
    whole = [list(p[0].shape) for p in map(_tensors, groups) if p]
    shapes = [[min(size, _TRIAL) for size in shape] for shape in whole]
    draw = torch.Generator().manual_seed(0)

    def trial(values: Sequence[Tensor]) -> tuple[Optimizer, list[Parameter]]:
        own = [Parameter(value.clone()) for value in values]
        given = iter(own)
        optimizer = make([[next(given)] if _tensors(group) else [] for group in groups])
        for part in switching_parts(optimizer):
            part.train()
        return optimizer, own

    def go(optimizer: Optimizer, own: Sequence[Parameter], gradients: Sequence[Sequence[Tensor]]) -> None:
        for each in gradients:
            for p, gradient in zip(own, each, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        if sorted(map(id, stepped)) != sorted(map(id, own)):
            raise ValueError("it puts other tensors into its groups, so that the model is not trained")
        if any(p.shape != gradient.shape for p, gradient in zip(own, gradients[0], strict=True)):
            raise ValueError("it changes the shape of parameters")

    start = [torch.randn(shape, generator=draw) for shape in shapes]
    gradients = [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(2 * _STEPS)]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer, own = trial(start)
        try:
            go(optimizer, own, gradients[:_STEPS])
        except (Exception, SystemExit):
            try:
                go(*trial([torch.randn(shape, generator=draw) for shape in whole]), [[torch.ones(s) for s in whole]])
            except (Exception, SystemExit) as error:
                raise ValueError(f"{rule} cannot step: {_told(error)}") from error
            return
        saved, kept = optimizer.state_dict(), [p.detach().clone() for p in own]
        check_plain(saved, f"the state of {rule}")
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        random = torch.get_rng_state()
        try:
            go(optimizer, own, gradients[_STEPS:])
        except (Exception, SystemExit) as error:
            raise ValueError(f"{rule} cannot step: {_told(error)}") from error
        resumed, other = trial(kept)
        try:
            resumed.load_state_dict(torch.load(file, weights_only=True))
            torch.set_rng_state(random)
            go(resumed, other, gradients[_STEPS:])
        except (Exception, SystemExit) as error:
            raise ValueError(f"{rule} cannot go on from its own state dict: {_told(error)}") from error
    if not all(torch.allclose(p, q, rtol=0.0, atol=0.0, equal_nan=True) for p, q in zip(own, other, strict=True)):
        raise ValueError(
            f"{rule} takes other steps after its state dict was saved and loaded, so that its runs could not be "
            "resumed; keep all that a step depends on in self.state[p] or in the parameter group"
        )


def _told(error: BaseException) -> str:
    """What code from outside raised, in one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}".removesuffix(": ")

"""A model as it was before a forward pass: parameters, buffers, submodules, gradients, modes and random generators."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["has_storage", "restored", "sharded_modules", "view_key"]


def has_storage(tensor: Tensor) -> bool:
    """Whether a tensor has numbers of its own in memory, given by strides."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided


def view_key(tensor: Tensor) -> tuple[Any, ...]:
    """The same for all objects that are one view of the same numbers; autograd hands on others than it was given."""
    if not has_storage(tensor):
        return (id(tensor),)
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def sharded_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that FSDP2 has divided among ranks."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [module for module in model.modules() if fsdp is not None and isinstance(module, fsdp.FSDPModule)]


@contextlib.contextmanager
def restored(model: nn.Module, written: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Put everything back that a forward pass changes: what it writes in place, replaces, adds, or draws at random.

    Args:
        model: any module, also under FSDP2.
        written: the tensors that the pass writes into, each with a clone from before; read when the pass has ended.
    """
    plain = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    sharded = sharded_modules(model)
    kinds = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    numpy = sys.modules.get("numpy")
    with contextlib.ExitStack() as back:  # last first, and all of it, even if one fails
        # Buffers are cloned at once, since a batch norm does not declare that it writes; others when they are written.
        buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        back.callback(_write_back, buffers, written)
        for p in model.parameters():
            back.callback(_set_changed, p, "requires_grad", p.requires_grad)
            back.callback(_set_changed, p, "grad", p.grad)
            for tensor in (p, p.grad):
                if tensor is not None:
                    back.callback(_point_back, tensor, tensor.data, view_key(tensor))
        for buffer, _ in buffers:
            back.callback(_point_back, buffer, buffer.data, view_key(buffer))
        for module in plain:
            back.callback(_set_changed, module, "training", module.training)
            back.callback(_refill, module, {kind: getattr(module, kind).copy() for kind in kinds}, set(vars(module)))
        for module in reversed(sharded):
            back.callback(cast(Any, module).reshard)  # which a root module does not do after its forward
        for restore in (r for module in plain for value in vars(module).values() for r in _generators(value)):
            back.callback(restore)
        back.callback(random.setstate, random.getstate())
        if numpy is not None:
            back.callback(numpy.random.set_state, numpy.random.get_state())
        back.enter_context(torch.random.fork_rng(devices=list(devices)))
        back.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # training says it again
        yield


def _set_changed(owner: Any, name: str, value: Any) -> None:
    if getattr(owner, name) is not value:
        setattr(owner, name, value)


def _point_back(tensor: Tensor, data: Tensor, key: tuple[Any, ...]) -> None:
    if view_key(tensor) != key:
        tensor.data = data


def _refill(module: nn.Module, members: dict[str, Any], attributes: set[str]) -> None:
    """Put back what a module holds, and remove new attributes that would hide it."""
    for kind, before in members.items():
        container = getattr(module, kind)
        container.clear()
        container.update(before)
        for name in vars(module).keys() & set(before) - attributes:
            del vars(module)[name]


def _write_back(*written: Iterable[tuple[Tensor, Tensor]]) -> None:
    with contextlib.ExitStack() as back:
        for tensor, original in (pair for pairs in written for pair in pairs):
            back.callback(_copy_back, tensor, original)


@torch.no_grad()
def _copy_back(tensor: Tensor, original: Tensor) -> None:
    strided = tensor.layout is torch.strided
    try:
        same = not tensor.is_meta and torch.equal(tensor, original)
    except RuntimeError:  # a layout or type whose numbers torch does not compare
        same = False
    if not same:
        for d in range(tensor.ndim if strided else 0):  # of an expanded tensor, the numbers that there are
            if tensor.stride(d) == 0 and tensor.shape[d]:
                tensor, original = tensor.narrow(d, 0, 1), original.narrow(d, 0, 1)
        tensor.copy_(original)


def _generators(value: Any) -> Iterator[Callable[[], Any]]:
    """What puts back a random generator, or those in a list or dict."""
    numpy = sys.modules.get("numpy")
    if isinstance(value, torch.Generator):
        yield functools.partial(value.set_state, value.get_state())
    elif isinstance(value, random.Random):
        yield functools.partial(value.setstate, value.getstate())
    elif numpy is not None and isinstance(value, numpy.random.RandomState):
        yield functools.partial(value.set_state, value.get_state())
    elif numpy is not None and isinstance(value, numpy.random.Generator):
        yield functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    elif isinstance(value, list | tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            if not isinstance(one, list | tuple | dict):
                yield from _generators(one)

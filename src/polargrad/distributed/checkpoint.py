"""Checkpoints that fit any number of ranks and any layout: state by parameter name, in torch.distributed.checkpoint.

    FOLDER/.metadata  __0_0.distcp  __1_0.distcp ...

Each rank writes the parts that it holds, and on loading reads the parts that it needs, so that DDP, FSDP2, HSDP, tensor
parallelism and a single process read each other's. A folder gets its name when it is complete. Options and other plain
data are stored as JSON in a tensor: nothing in a checkpoint is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polargrad.optim import PolarGrad
from polargrad.optim.options import resolve
from polargrad.optim.polargrad import initialize_state

__all__ = ["load", "save"]

FORMAT = 1
_PART = ".part"
_METADATA = "facts"
# What a group holds besides its options.
_NOT_OPTIONS = ("params", "param_names")


def save(folder: str | Path, model: nn.Module, optimizer: PolarGrad, **extra: Any) -> None:
    """Save the weights of a model and the whole state of its optimizer. Every rank calls it.

    Parameters that have not been stepped yet are saved with the zeros that their first step would find.

    Args:
        folder: a new one, on a file system that all ranks share.
        model: on any layout, wrapped in DistributedDataParallel or not.
        optimizer: over parameters of `model`.
        **extra: plain data that JSON can hold, equal on all ranks; `load` returns it.

    Raises:
        FileExistsError: the folder exists; it is left as it is.
        ValueError: the optimizer holds a parameter that the model does not have.
        TypeError: extra data that JSON cannot hold.
    """
    folder = Path(folder)
    metadata = {"format": FORMAT, "groups": _group_metadata(model, optimizer), "extra": extra}
    _on_first_rank(lambda: _refuse(folder))
    part = folder.with_name(folder.name + _PART)
    initialize_state(optimizer)
    _quietly("save", {**_state(model, optimizer), _METADATA: _encoded(metadata)}, part)
    _on_first_rank(lambda: part.rename(folder))


def load(folder: str | Path, model: nn.Module, optimizer: PolarGrad) -> dict[str, Any]:
    """Load what `save` wrote into a model and its optimizer, on any ranks and layout. Every rank calls it.

    Parameters are matched by name; the options of the groups (learning rates and so on) come from the checkpoint.

    Args:
        folder: of a checkpoint.
        model: of the same parameters, on any layout.
        optimizer: with the same parameters in each group.

    Returns:
        The extra data.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is of another model, of other groups, of other dtypes or of a later version; nothing is changed.
    """
    folder = Path(folder)
    if not (folder / ".metadata").is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint: it has no .metadata; give a folder that save() made")
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    kept = saved.get(_METADATA)
    if not isinstance(kept, TensorStorageMetadata):
        raise ValueError(f"{folder} is a checkpoint of something else: it has no metadata of this kind")
    holder = {_METADATA: torch.empty(kept.size, dtype=torch.uint8)}
    _quietly("load", holder, folder)
    metadata = json.loads(bytes(holder[_METADATA].tolist()))
    if metadata["format"] != FORMAT:
        raise ValueError(
            f"{folder} has format {metadata['format']!r}, this version reads {FORMAT}; use the other version"
        )
    initialize_state(optimizer)
    state = _state(model, optimizer)
    # Every rank names what any rank finds: some state is held by the owners of matrices alone.
    everywhere = _gathered(optimizer, list(state))
    differences = _gathered(optimizer, _differences(saved, state, everywhere)) or _other_groups(
        metadata["groups"], _group_metadata(model, optimizer)
    )
    if differences:
        raise ValueError(f"{folder} is of another model or optimizer: {'; '.join(differences)}. Nothing was loaded")
    _quietly("load", state, folder)
    for group, options in zip(optimizer.param_groups, metadata["groups"], strict=True):
        _set_options(group, options["options"])
    return metadata["extra"]


def _names(model: nn.Module) -> dict[int, str]:
    """The name of each parameter, by its identity, as the bare model has it."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return {id(p): name.replace("_orig_mod.", "") for name, p in model.named_parameters()}


def _state(model: nn.Module, optimizer: PolarGrad) -> dict[str, Tensor]:
    """Every tensor, sharing its memory: "model.NAME" and "optimizer.NAME.KEY"."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    state = {f"model.{name.replace('_orig_mod.', '')}": value for name, value in model.state_dict().items()}
    names = _names(model)
    for p, entries in optimizer.state.items():
        state |= {f"optimizer.{names[id(p)]}.{key}": value for key, value in entries.items()}
    return state


def _group_metadata(model: nn.Module, optimizer: PolarGrad) -> list[dict[str, Any]]:
    """The names and options of each group, as plain data."""
    names = _names(model)
    metadata = []
    for index, group in enumerate(optimizer.param_groups):
        if missing := [tuple(p.shape) for p in group["params"] if id(p) not in names]:
            raise ValueError(
                f"group {index} of the optimizer holds {len(missing)} parameters that are not the model's, the first "
                f"of shape {missing[0]}; give the model whose parameters it steps"
            )
        options = {key: value for key, value in group.items() if key not in _NOT_OPTIONS}
        metadata.append({"names": [names[id(p)] for p in group["params"]], "options": _plain(options)})
    return metadata


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, Tensor) else value


def _set_options(group: dict[str, Any], options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        old = group.get(key)
        if isinstance(old, Tensor):
            old.fill_(value)  # keeps its identity: a compiled step reads it from there
        else:
            group[key] = tuple(value) if isinstance(old, tuple) else value
    resolve(group)


def _gathered(optimizer: PolarGrad, texts: list[str]) -> list[str]:
    """The texts of all ranks of an optimizer, sorted."""
    return [text for text in optimizer.executor.gather_names([*texts, ""]) if text]


def _encoded(metadata: Mapping[str, Any]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(metadata).encode()), dtype=torch.uint8)


def _differences(saved: Mapping[str, Any], state: Mapping[str, Tensor], everywhere: list[str]) -> list[str]:
    """How the tensors of a checkpoint differ from those to load, the first few of each kind.

    Args:
        saved: metadata of the checkpoint.
        state: of this rank.
        everywhere: the names in the states of all ranks.
    """
    kept = set(saved) - {_METADATA}
    sentences = []
    for names, what in ((set(everywhere) - kept, "it lacks"), (kept - set(everywhere), "only it has")):
        if names:
            sentences.append(f"{what} {', '.join(sorted(names)[:4])}{' and others' if len(names) > 4 else ''}")
    for name in sorted(kept & set(state)):
        was, now = saved[name], state[name]
        if tuple(was.size) != tuple(now.shape):
            sentences.append(f"{name} has the shape {tuple(was.size)} there and {tuple(now.shape)} here")
        elif was.properties.dtype != now.dtype:
            sentences.append(f"{name} is {was.properties.dtype} there and {now.dtype} here")
    return sentences[:8]


def _other_groups(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> list[str]:
    if [group["names"] for group in saved] == [group["names"] for group in own]:
        return []
    sizes = [[len(group["names"]) for group in groups] for groups in (saved, own)]
    return [f"its groups have other parameters ({sizes[0]} there, {sizes[1]} here)"]


def _refuse(folder: Path) -> None:
    for path in (folder, folder.with_name(folder.name + _PART)):
        if path.exists():
            raise FileExistsError(f"{path} exists and is left as it is; give another folder, or delete it")


def _on_first_rank(act: Callable[[], object]) -> None:
    """Call `act` on rank 0; its error is raised on every rank."""
    if not dist.is_initialized():
        act()
        return
    failure: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            act()
        except OSError as error:
            failure[0] = error
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise failure[0]


def _quietly(what: str, state: dict[str, Any], folder: Path) -> None:
    """Save or load tensors, without the warning that one process is enough."""
    import warnings

    from torch.distributed import checkpoint

    alone = not dist.is_initialized()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        warnings.filterwarnings("ignore", message=".*no_dist.*")
        getattr(checkpoint, what)(state, checkpoint_id=str(folder), no_dist=alone)

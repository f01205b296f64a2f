"""Checkpoints that fit any number of ranks and any layout: state by parameter name, in torch.distributed.checkpoint.

    FOLDER/index.json        what lies where, every number that is not in a tensor, and checksums
           rank-00000.bin    the bytes of the tensors that rank 0 wrote; one such file for each rank that wrote some

torch.distributed.checkpoint plans which rank writes and reads which part, so that DDP, FSDP2, HSDP, tensor parallelism
and a single process read each other's. What it writes into and reads from are bytes and JSON of our own: there is
nothing to unpickle. A folder gets its name when it is complete and on the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polargrad.optim import PolarGrad
from polargrad.optim.options import check_parameters, check_rate, fill_options, parameter_name, resolve
from polargrad.optim.polargrad import initialize_state

__all__ = ["CheckpointDamaged", "Saved", "load", "save", "sync_folder"]

FORMAT = 2
INDEX = "index.json"
PART = ".part"
_DATA = re.compile(r"rank-\d{5,}\.bin")
# What stands for a tensor in plain data.
_TENSOR = "$tensor"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.complex64, torch.complex128, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32),
        torch.int64,
    )
}
# What a group holds besides its options.
_NOT_OPTIONS = ("params", "param_names")


class CheckpointDamaged(ValueError):
    """A file of a checkpoint is missing, cut short or changed; the message names it."""


def save(folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, **extra: Any) -> None:
    """Save the weights of a model and the whole state of its optimizer. Every rank calls it.

    Parameters that PolarGrad has not stepped yet are saved with the zeros that their first step would find. What a save
    that was killed left behind is cleared away.

    Args:
        folder: a new one, on a file system that all ranks share.
        model: on any layout, wrapped in DistributedDataParallel or not.
        optimizer: over parameters of `model`: PolarGrad, or on one process any optimizer of torch's.
        **extra: plain data that JSON can hold, and tensors equal on all ranks, also nested; `load` returns them. Rank
            0's count.

    Raises:
        FileExistsError: the folder exists; it is left as it is.
        ValueError: the optimizer holds a parameter that the model does not have.
        TypeError: extra data that JSON cannot hold, or another optimizer than PolarGrad on several ranks.
        OSError: a rank could not write, as on a full disk; nothing of the checkpoint is left. Every rank raises it.
    """
    write(folder, model, optimizer, extra)


def load(folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load what `save` wrote into a model and its optimizer, on any ranks and layout. Every rank calls it.

    Parameters are matched by name; the options of the groups (learning rates and so on) come from the checkpoint. The
    checksum of every file is verified first, the files divided among the ranks.

    Args:
        folder: of a checkpoint.
        model: of the same parameters, on any layout.
        optimizer: with the same parameters in each group.

    Returns:
        The extra data.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointDamaged: a file was cut short or changed since it was written; nothing is loaded.
        ValueError: it is of another model, of other groups, of other dtypes or of a later version; nothing is changed.
    """
    saved = Saved.open(folder)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    found = [saved.damage(rank, ranks)]
    if dist.is_initialized():
        everyone: list[Any] = [None] * ranks
        dist.all_gather_object(everyone, found[0])
        found = everyone
    if damage := next(filter(None, found), ""):
        raise CheckpointDamaged(damage)
    return saved.load(model, optimizer)


class _Chunk(NamedTuple):
    """Where a part of a tensor lies: its bytes begin at `at` in `file`."""

    file: str
    at: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the disk, of which the index was read and checked; `open` makes one.

    Args:
        folder: its folder.
        metadata: what torch.distributed.checkpoint knows of it, made from the checked index.
        files: bytes and SHA-256 of each data file, by name.
        groups: names and options of the optimizer's groups.
        state: what the optimizer keeps for each parameter, plain data with the names of tensors in it.
        extra: the extra data, likewise.
    """

    folder: Path
    metadata: Any
    files: Mapping[str, tuple[int, str]]
    groups: list[dict[str, Any]]
    state: Mapping[str, Any]
    extra: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Saved:
        """Read the index of a checkpoint.

        Raises:
            FileNotFoundError: there is no checkpoint.
            CheckpointDamaged: the index is not what was written, or does not describe a checkpoint.
            ValueError: the format is of another version.
        """
        folder = Path(folder)
        path = folder / INDEX
        if not path.is_file():
            if (folder / ".metadata").is_file():
                raise ValueError(
                    f"{folder} is a checkpoint in the format of torch, which is read by unpickling: not done here. "
                    "Load it with the program that wrote it, and save it again"
                )
            raise FileNotFoundError(f"{folder} is not a checkpoint: it has no {INDEX}; give a folder that save() made")
        content = _read_index(path)
        try:
            return cls(folder, *_checked(content))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise CheckpointDamaged(f"{path} does not describe a checkpoint ({_line(error)}); restore it") from None

    def damage(self, first: int = 0, step: int = 1) -> str:
        """A sentence that names the first data file that is not what was written; empty if none is.

        Args:
            first: number of the first file to look at, in the order of their names.
            step: from there on every `step`-th file is looked at.
        """
        names = sorted(self.files)[first::step]
        with ThreadPoolExecutor(max_workers=max(1, min(8, len(names)))) as pool:
            return next(filter(None, pool.map(self._damage_of, names)), "")

    def _damage_of(self, name: str) -> str:
        path, (size, digest) = self.folder / name, self.files[name]
        try:
            with path.open("rb") as file:
                there = os.fstat(file.fileno()).st_size
                if there != size:
                    return f"{path} has {there} bytes where {size} were written; restore it, or use another checkpoint"
                if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                    return ""
        except OSError as error:
            return f"{path} cannot be read ({error.strerror}); restore it, or use another checkpoint"
        return f"{path} does not match its checksum: it was changed since it was written; use another checkpoint"

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, group: Any = None) -> dict[str, Any]:
        """Put the state into a model and its optimizer; every rank calls it. The data files count as verified.

        Args:
            model: see `load`.
            optimizer: see `load`.
            group: ranks to speak to; None: all.

        Returns:
            The extra data.

        Raises:
            ValueError: as `load`.
        """
        reshard(model)
        extra_tensors: dict[str, Tensor] = {}
        extra = self._allocated(self.extra, extra_tensors)
        ours = isinstance(optimizer, PolarGrad)
        if ours:
            initialize_state(optimizer)
        elif dist.is_initialized():
            raise TypeError(f"{type(optimizer).__name__} cannot be loaded on several ranks; PolarGrad can")
        foreign = {} if ours else self._allocated(self.state, extra_tensors)
        held = _split(_state(model, optimizer), "optimizer", exact=True)[1] if ours else {}
        state = {**_weights(model), **held}
        own = _group_metadata(model, optimizer)
        # Every rank names what any rank finds: some state is held by the owners of matrices alone.
        everywhere = _gathered(optimizer, list(state))
        differences = _gathered(optimizer, self._differences(state, everywhere, every=ours))
        differences = differences or _other_groups(self.groups, own)
        if differences:
            raise ValueError(
                f"{self.folder} is of another model or optimizer: {'; '.join(differences)}. Nothing was loaded"
            )
        if ours:
            options, refusals = self._checked_options(optimizer)
            if refusals := _gathered(optimizer, refusals):
                raise ValueError(f"{self.folder}: the saved options of {refusals[0]}. Nothing was loaded")
        else:
            # What the optimizer itself refuses is refused before the weights are loaded.
            _call("load", extra_tensors, group, storage_reader=_reader(self))
            self._load_foreign(optimizer, foreign)
            options, extra_tensors = [], {}
        _call("load", {**state, **extra_tensors}, group, storage_reader=_reader(self))
        for entry, loaded in zip(optimizer.param_groups, options, strict=False):
            _set_options(entry, loaded)
        return extra

    def _checked_options(self, optimizer: PolarGrad) -> tuple[list[dict[str, Any]], list[str]]:
        """The options of each saved group, and why this rank's parameters and their state cannot take them."""
        checked, refusals = [], []
        for number, (present, saved) in enumerate(zip(optimizer.param_groups, self.groups, strict=True)):
            group = {**present, **_options_of(saved)}
            try:
                fill_options(group, optimizer.defaults, strict=False)
                if group["rule"] != present["rule"]:
                    raise ValueError(f"rule is {group['rule']!r} there and {present['rule']!r} here")
                rule = resolve(group)
                check_parameters(group, rule)
                for position, p in enumerate(group["params"]):
                    name, state, own = parameter_name(present, position), optimizer.state.get(p, {}), {}
                    rule.add_state(p, own, optimizer.executor)
                    if missing := sorted(set(own) - set(state)):
                        raise ValueError(f"they need {missing[0]} of {name}, which was not saved")
                    rule.check_state(p, state, name, optimizer.executor)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
                refusals.append(f"group {number} are refused: {error}")
            checked.append({option: value for option, value in group.items() if option not in _NOT_OPTIONS})
        return checked, refusals

    def _load_foreign(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Load an optimizer that is not ours, whose state is keyed by the number of the parameter."""
        numbers = {name: number for number, name in enumerate(name for group in self.groups for name in group["names"])}
        entries: list[dict[str, Any]] = []
        for number, (present, saved) in enumerate(zip(optimizer.param_groups, self.groups, strict=True)):
            options = {**present, **_options_of(saved)}
            check_rate(f"{self.folder}: lr of group {number}", options["lr"], present["params"], False)
            if isinstance(present["lr"], Tensor):
                options["lr"] = torch.full_like(present["lr"], options["lr"])
            entries.append({**options, "params": [numbers[name] for name in saved["names"]]})
        if unknown := sorted(set(state) - set(numbers)):
            raise ValueError(f"{self.folder} holds the state of {unknown[0]}, which is in no group. Nothing was loaded")
        rates = [group["lr"] for group in optimizer.param_groups]
        numbered = {numbers[name]: kept for name, kept in state.items()}
        optimizer.load_state_dict({"state": numbered, "param_groups": entries})
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if isinstance(rate, Tensor):  # a compiled optimizer reads the rate from this very tensor
                group["lr"] = rate.fill_(group["lr"])

    def _allocated(self, plain: Any, tensors: dict[str, Tensor]) -> Any:
        """The data with an empty tensor in place of each name of one; they go into `tensors` too."""

        def tensor(name: str) -> Tensor:
            entry = self.metadata.state_dict_metadata[name]
            return tensors.setdefault(name, torch.empty(entry.size, dtype=entry.properties.dtype))

        return _joined(plain, tensor)

    def _differences(self, state: Mapping[str, Tensor], everywhere: list[str], *, every: bool) -> list[str]:
        """How the tensors of the checkpoint differ from those to load, the first few of each kind.

        Args:
            state: of this rank.
            everywhere: the names in the states of all ranks.
            every: whether the optimizer's tensors count, or the model's alone.
        """
        saved = self.metadata.state_dict_metadata
        prefixes = ("model.", "optimizer.") if every else ("model.",)
        kept = {name for name in saved if name.startswith(prefixes)}
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


def write(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any],
    group: Any = None,
) -> None:
    """`save`, by the ranks of a process group that sends objects between CPUs; None: all ranks."""
    folder = Path(folder)
    reshard(model)
    part = folder.with_name(folder.name + PART)
    if isinstance(optimizer, PolarGrad):
        initialize_state(optimizer)
    elif dist.is_initialized():
        raise TypeError(f"{type(optimizer).__name__} cannot be saved on several ranks; PolarGrad can")
    groups = _group_metadata(model, optimizer)
    state, tensors = _split(_state(model, optimizer), "optimizer", exact=True)
    more, others = _split(dict(extra), "extra")
    plain = {"groups": groups, "state": state, "extra": more}
    json.dumps(plain)  # what it cannot hold is refused before anything is written
    tensors = {**_weights(model), **tensors, **others}
    if odd := [name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES.values()]:
        raise TypeError(f"{odd[0]} is {tensors[odd[0]].dtype}, which checkpoints do not hold")
    on_first_rank(lambda: _prepare(folder, part), group)
    try:
        _call("save", tensors, group, storage_writer=_writer(part, plain))
    except BaseException:
        if not dist.is_initialized() or dist.get_rank(group) == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise
    on_first_rank(lambda: _publish(part, folder), group)


def clear_part(part: Path) -> None:
    """Remove what a save that was killed left behind.

    Raises:
        FileExistsError: it is something else, such as a link, or something else is in it.
    """
    if not os.path.lexists(part):
        return

    def ours(path: Path) -> bool:
        return (path.name == INDEX or bool(_DATA.fullmatch(path.name))) and path.is_file() and not path.is_symlink()

    if part.is_symlink() or not part.is_dir() or not all(map(ours, part.iterdir())):
        raise FileExistsError(
            f"{part} exists and is no unfinished checkpoint; it is left as it is: give another folder"
        )
    shutil.rmtree(part)


def sync_folder(folder: Path) -> None:
    """Make a name given in a folder survive a power cut, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems sync no folders
    finally:
        os.close(handle)


def on_first_rank(act: Callable[[], object], group: Any = None) -> None:
    """Call `act` on rank 0; its error is raised on every rank."""
    if not dist.is_initialized():
        act()
        return
    failure: list[Any] = [None]
    if dist.get_rank(group) == 0:
        try:
            act()
        except OSError as error:
            failure[0] = error
    dist.broadcast_object_list(failure, group=group, group_src=0)
    if failure[0] is not None:
        raise failure[0]


def _prepare(folder: Path, part: Path) -> None:
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists and is left as it is; give another folder, or delete it")
    clear_part(part)
    part.mkdir(parents=True)


def _publish(part: Path, folder: Path) -> None:
    sync_folder(part)
    part.rename(folder)
    sync_folder(folder.parent)


def reshard(model: nn.Module) -> None:
    """Let go of whole parameters that `fully_shard` gathered for a forward pass and keeps until the next backward."""
    if dist.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _names(model: nn.Module) -> dict[int, str]:
    """The name of each parameter, by its identity, as the bare model has it."""
    return {id(p): name.replace("_orig_mod.", "") for name, p in _bare(model).named_parameters()}


def _bare(model: nn.Module) -> nn.Module:
    return cast(nn.Module, model.module) if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and buffer, sharing its memory, as "model.NAME"."""
    return {f"model.{name.replace('_orig_mod.', '')}": value for name, value in _bare(model).state_dict().items()}


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimizer keeps for each parameter, by the parameter's name."""
    names = _names(model)
    if isinstance(optimizer, PolarGrad):
        return {names[id(p)]: dict(entries) for p, entries in optimizer.state.items() if id(p) in names}
    # Another one's state dict may say in plain data what it holds in objects.
    numbered = [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
    return {numbered[number]: entries for number, entries in optimizer.state_dict()["state"].items()}


def _split(value: Any, path: str, exact: bool = False) -> tuple[Any, dict[str, Tensor]]:
    """Nested data as what JSON can hold, with the names of tensors in it, and the tensors.

    Args:
        value: plain data and tensors.
        path: where tensors' names begin.
        exact: whether `_joined` gives back tuples as tuples.
    """
    tensors: dict[str, Tensor] = {}

    def plain(entry: Any, at: str) -> Any:
        if isinstance(entry, Tensor):
            tensors[at] = entry.detach()
            return {_TENSOR: at}
        if isinstance(entry, Mapping):
            pairs = [(key, plain(inner, f"{at}.{key}")) for key, inner in entry.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
                return dict(pairs)
            return {"$mapping": [[plain(key, at), inner] for key, inner in pairs]}
        if isinstance(entry, list | tuple):
            listed = [plain(inner, f"{at}.{number}") for number, inner in enumerate(entry)]
            return {"$tuple": listed} if exact and isinstance(entry, tuple) else listed
        if isinstance(entry, torch.dtype | torch.device):
            kind = "$dtype" if isinstance(entry, torch.dtype) else "$device"
            return {kind: str(entry).removeprefix("torch.")}
        return {"$bytes": entry.hex()} if isinstance(entry, bytes) else entry

    return plain(value, path), tensors


def _joined(plain: Any, tensor: Callable[[str], Tensor]) -> Any:
    """What `_split` took apart; `tensor` gives a tensor by its name."""
    if isinstance(plain, list):
        return [_joined(entry, tensor) for entry in plain]
    if not isinstance(plain, Mapping):
        return plain
    kind, content = next(iter(plain.items())) if len(plain) == 1 else ("", None)
    if not kind.startswith("$"):
        return {key: _joined(value, tensor) for key, value in plain.items()}
    if kind == "$mapping" and isinstance(content, list):
        return {_joined(key, tensor): _joined(value, tensor) for key, value in content}
    if kind == "$tuple" and isinstance(content, list):
        return tuple(_joined(content, tensor))
    if kind not in (_TENSOR, "$dtype", "$device", "$bytes") or not isinstance(content, str):
        raise ValueError(f"it names {kind} {content!r:.40} that cannot be")
    if kind == _TENSOR:
        return tensor(content)
    if kind == "$dtype":
        return _DTYPES[content]
    return torch.device(content) if kind == "$device" else bytes.fromhex(content)


def _group_metadata(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
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
        metadata.append(
            {"names": [names[id(p)] for p in group["params"]], "options": _split(_plain(options), "", exact=True)[0]}
        )
    return metadata


def _options_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a saved group, in which there are no tensors."""

    def tensor(name: str) -> Tensor:
        raise ValueError(f"it names the tensor {name!r} as an option")

    return _joined(saved["options"], tensor)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(_plain(entry) for entry in value)
    return value.item() if isinstance(value, Tensor) else value


def _set_options(group: dict[str, Any], options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        old = group.get(key)
        if isinstance(old, Tensor):
            old.fill_(value)  # keeps its identity: a compiled step reads it from there
        else:
            group[key] = value


def _gathered(optimizer: torch.optim.Optimizer, texts: list[str]) -> list[str]:
    """The texts of all ranks of an optimizer, sorted; another one than ours has a single rank."""
    if not isinstance(optimizer, PolarGrad):
        return texts
    return [text for text in optimizer.executor.gather_names([*texts, ""]) if text]


def _other_groups(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> list[str]:
    if [group["names"] for group in saved] == [group["names"] for group in own]:
        return []
    sizes = [[len(group["names"]) for group in groups] for groups in (saved, own)]
    return [f"its groups have other parameters ({sizes[0]} there, {sizes[1]} here)"]


def _read_index(path: Path) -> dict[str, Any]:
    """The content of an index whose checksum agrees."""
    try:
        document = json.loads(path.read_bytes())
        content, digest = document["content"], document["sha256"]
        whole = _digest(content) == digest
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read ({error.strerror}); use another checkpoint") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        whole, content = False, {}
    if not whole:
        raise CheckpointDamaged(f"{path} is cut short or was changed since it was written; use another checkpoint")
    if not isinstance(content, dict):
        raise CheckpointDamaged(f"{path} does not describe a checkpoint (it holds {content!r:.40}); restore it")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {content.get('format')!r}, this version reads {FORMAT}; use the version that wrote it"
        )
    return content


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _checked(content: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[int, str]], list[Any], Any, Any]:
    """What an index says, as `Saved` holds it; anything out of its place raises.

    A tensor's parts lie in the files named, within the tensor, and have as many elements together as the tensor.
    """
    from torch.distributed.checkpoint import metadata as dcp

    if content["byteorder"] != sys.byteorder:
        raise ValueError(f"it was written on a machine of {content['byteorder']}-endian numbers")
    files: dict[str, tuple[int, str]] = {}
    for name, (size, digest) in content["files"].items():
        _require(_DATA.fullmatch(name) and type(size) is int and isinstance(digest, str), f"the file {name!r}")
        files[name] = size, digest
    tensors: dict[str, Any] = {}
    places: dict[Any, _Chunk] = {}
    for name, (kind, shape, chunks) in content["tensors"].items():
        dtype = _DTYPES[kind]
        size = _sizes(shape)
        parts = []
        for number, (offset, part, file, at) in enumerate(chunks):
            offsets, lengths = _sizes(offset), _sizes(part)
            _require(len(offsets) == len(lengths) == len(size), f"a part of {name}")
            _require(all(o + n <= m for o, n, m in zip(offsets, lengths, size, strict=True)), f"a part of {name}")
            end = at + math.prod(lengths) * dtype.itemsize
            _require(type(at) is int and 0 <= at <= end <= files[file][0], f"a part of {name}")
            parts.append(dcp.ChunkStorageMetadata(torch.Size(offsets), torch.Size(lengths)))
            places[dcp.MetadataIndex(name, offsets, number)] = _Chunk(file, at, lengths, dtype)
        boxes = [(part.offsets, part.sizes) for part in parts]
        _require(len({offsets for offsets, _ in boxes}) == len(boxes), f"two parts of {name} in one place")
        _require(not _overlap(boxes), f"parts of {name} that overlap")
        _require(sum(math.prod(sizes) for _, sizes in boxes) == math.prod(size), f"parts of {name} that do not fill it")
        tensors[name] = dcp.TensorStorageMetadata(dcp.TensorProperties(dtype=dtype), torch.Size(size), parts)
    groups, state, extra = content["plain"]["groups"], content["plain"]["state"], content["plain"]["extra"]
    _require(isinstance(groups, list) and isinstance(state, dict) and isinstance(extra, dict), "the state")
    named = [name for group in groups for name in group["names"]]
    _require(len(set(named)) == len(named) and all(isinstance(name, str) for name in named), "the groups")

    def tensor(name: str) -> Tensor:
        _require(name in tensors, f"a tensor {name!r}, which it lacks,")
        return torch.empty(0)

    # All that is put together when it is loaded, here with other tensors.
    for entry in (state, extra):
        _require(isinstance(_joined(entry, tensor), dict), "the state")
    for group in groups:
        options = _options_of(group)
        _require(isinstance(options, dict) and not set(options) & set(_NOT_OPTIONS), "options of a group")
    return dcp.Metadata(state_dict_metadata=tensors, storage_data=places), files, groups, state, extra


def _require(holds: object, what: str) -> None:
    if not holds:
        raise ValueError(f"it names {what} that cannot be")


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
    # As many bytes as an address reaches, also without the dimensions of size 0, which strides leave out.
    _require(sizes and math.prod(n or 1 for n in value) < 2**59, f"the shape {value!r}")
    return tuple(value)


def _overlap(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether two of the boxes (offsets, sizes) have an element in common."""
    boxes = [(offsets, sizes) for offsets, sizes in boxes if math.prod(sizes)]
    if len(boxes) < 2:
        return False
    # Boxes that follow each other along the dimension in which they start at the most places.
    dims = range(len(boxes[0][0]))
    dim = max(dims, key=lambda d: len({offsets[d] for offsets, _ in boxes}), default=0)
    boxes.sort(key=lambda box: box[0][dim : dim + 1])
    for number, (offsets, sizes) in enumerate(boxes):
        for others, lengths in boxes[number + 1 :]:
            if dims and others[dim] >= offsets[dim] + sizes[dim]:
                break
            if all(others[d] < offsets[d] + sizes[d] and offsets[d] < others[d] + lengths[d] for d in dims):
                return True
    return False


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _call(what: str, state: dict[str, Any], group: Any, **storage: Any) -> None:
    """`torch.distributed.checkpoint.save` or `load`, whose failures are raised as what they are."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import CheckpointException

    alone = not dist.is_initialized()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        warnings.filterwarnings("ignore", message=".*no_dist.*")
        try:
            getattr(checkpoint, what)(state, **storage, no_dist=alone, process_group=group)
        except CheckpointException as failure:
            causes = {rank: error for rank, (error, _) in failure.failures.items()}
            rank, cause = next(
                ((r, e) for r, e in causes.items() if isinstance(e, OSError)), next(iter(causes.items()))
            )
            if isinstance(cause, OSError) and not alone:
                cause = OSError(cause.errno, f"rank {rank}: {cause.strerror or cause}", cause.filename)
            raise cause from None


def _writer(folder: Path, plain: Mapping[str, Any]) -> Any:
    """The storage into which torch.distributed.checkpoint writes a checkpoint."""
    from torch.distributed.checkpoint import StorageWriter
    from torch.distributed.checkpoint.storage import WriteResult
    from torch.futures import Future

    class Writer(StorageWriter):
        def reset(self, checkpoint_id: Any = None) -> None: ...

        def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

        def prepare_local_plan(self, plan: Any) -> Any:
            return plan

        def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
            return [replace(plan, storage_data=f"rank-{rank:05d}.bin") for rank, plan in enumerate(plans)]

        def write_data(self, plan: Any, planner: Any) -> Any:
            found: Any = Future()
            found.set_result(self._write(plan, planner) if plan.items else [])
            return found

        def _write(self, plan: Any, planner: Any) -> list[Any]:
            places, hashed = [], hashlib.sha256()
            path = folder / plan.storage_data
            with path.open("xb") as file:
                for item in plan.items:
                    places.append((item.index, file.tell()))
                    data = _bytes_of(planner.resolve_data(item))
                    hashed.update(data)
                    file.write(data)
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            facts = plan.storage_data, size, hashed.hexdigest()
            return [WriteResult(index, 0, (*facts, at)) for index, at in places]

        def finish(self, metadata: Any, results: list[list[Any]]) -> None:
            files, places = {}, {}
            for result in (result for of_rank in results for result in of_rank):
                file, size, digest, at = result.storage_data
                files[file] = size, digest
                places[result.index.fqn, tuple(result.index.offset)] = file, at
            tensors = {
                name: (
                    str(entry.properties.dtype).removeprefix("torch."),
                    list(entry.size),
                    [(list(c.offsets), list(c.sizes), *places[name, tuple(c.offsets)]) for c in entry.chunks],
                )
                for name, entry in metadata.state_dict_metadata.items()
            }
            content = {"format": FORMAT, "byteorder": sys.byteorder, "files": files, "tensors": tensors, "plain": plain}
            with (folder / INDEX).open("x", encoding="utf-8") as file:
                json.dump({"sha256": _digest(content), "content": content}, file)
                file.flush()
                os.fsync(file.fileno())

        @classmethod
        def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
            return True

    return Writer()


def _bytes_of(tensor: Tensor) -> Any:
    """The memory of a tensor's elements in order; NumPy, which has a word for it, need not be there."""
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.numel():
        return b""
    memory = (ctypes.c_char * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr())
    memory.owner = tensor  # pyright: ignore[reportAttributeAccessIssue]  lives as long as the memory is used
    return memory


def _reader(saved: Saved) -> Any:
    """The storage from which torch.distributed.checkpoint reads a checkpoint: what was checked, and bytes."""
    from torch.distributed.checkpoint import StorageReader
    from torch.futures import Future

    class Reader(StorageReader):
        def reset(self, checkpoint_id: Any = None) -> None: ...

        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            return saved.metadata

        def set_up_storage_reader(self, metadata: Any, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

        def prepare_local_plan(self, plan: Any) -> Any:
            return plan

        def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
            return plans

        def read_data(self, plan: Any, planner: Any) -> Any:
            with contextlib.ExitStack() as stack:
                opened: dict[str, Any] = {}
                for item in plan.items:
                    place = saved.metadata.storage_data[item.storage_index]
                    if place.file not in opened:
                        opened[place.file] = stack.enter_context((saved.folder / place.file).open("rb"))
                    part = _read_part(opened[place.file], place)
                    for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        part = part.narrow(axis, start, length)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(part)
                    planner.commit_tensor(item, target)
            done: Any = Future()
            done.set_result(None)
            return done

        @classmethod
        def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
            return True

    return Reader()


def _read_part(file: Any, place: _Chunk) -> Tensor:
    count = math.prod(place.shape)
    if not count:
        return torch.empty(place.shape, dtype=place.dtype)
    memory = bytearray(count * place.dtype.itemsize)
    file.seek(place.at)
    if file.readinto(memory) != len(memory):
        raise CheckpointDamaged(f"{file.name} ends too early; use another checkpoint")
    return torch.frombuffer(memory, dtype=place.dtype).reshape(place.shape)

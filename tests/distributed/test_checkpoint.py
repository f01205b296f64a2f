"""State saved on some ranks and layout goes on, on any other, as if nothing had happened."""

import errno
import json
import re

import pytest
import torch
from torch import nn

import polargrad
from polargrad.distributed.checkpoint import CheckpointDamaged, _digest, _overlap, load, save
from polargrad.optim.polargrad import initialize_state
from tests.distributed.layouts import Place, arguments_of
from tests.distributed.worlds import spawn

SHAPES = {"table": (23, 6), "square": (8, 8), "experts": (3, 5, 4), "late": (6, 7), "head": (11, 6), "scalars": (5,)}


def placed(tensor, layout, world):
    """A whole tensor on a layout, or on the single process."""
    return tensor.clone() if layout == "alone" else Place(tensor.shape, layout, world).put(tensor)


def whole(tensor):
    """The whole of a plain tensor or DTensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Model(nn.Module):
    """Parameters of a few shapes, on a layout."""

    def __init__(self, layout, world):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            start = torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(placed(start, layout, world)))


def made(layout, world):
    """A model and its optimizer with momentum of every kind."""
    model = Model(layout, world)
    groups = [
        {"params": [model.table], "lr": 0.02, "scale": "adaptive-nuclear", "method": "svd"},
        {"params": [model.experts, model.late], "lr": 0.03, "momentum_order": "heavy-ball", "method": "svd"},
        {"params": [model.head], "lr": 0.02, "scale": "rms", "normalize_rows": 0.9, "method": "svd"},
        {"params": [model.scalars], "lr": 0.05, "rule": "adamw", "betas": (0.8, 0.9)},
        {"params": [model.square], "lr": 0.02, "scale": "rms", "method": "svd", "whitening": "two-sided"},
    ]
    return model, polargrad.PolarGrad(groups, **({} if layout == "alone" else arguments_of(layout)))


def step(model, optimizer, number, layout, world):
    """A step along gradients that depend on the whole weights and the step's number."""
    for name, parameter in model.named_parameters():
        if name == "late" and number < 6:
            continue
        weights = whole(parameter.detach())
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        parameter.grad = placed(torch.sin(weights) + 0.1 * noise, layout, world)
    optimizer.step()


def go(rank, world, layout, first, last, source=None, target=None):
    """Load, step from `first` to `last`, save; the whole weights and the number that went with the checkpoint."""
    model, optimizer = made(layout, world)
    extra = load(source, model, optimizer) if source is not None else {"step": first}
    assert extra["step"] == first
    for number in range(first, last):
        step(model, optimizer, number, layout, world)
    if target is not None:
        save(target, model, optimizer, step=last)
    return {name: whole(value.detach()).clone() for name, value in model.named_parameters()}


def chain(rank, world, folder, stages):
    """Several stages in one set of ranks: (layout, first, last, source, target)."""
    return [go(rank, world, layout, a, b, source, target) for layout, a, b, source, target in stages][-1]


def of_ranks(results):
    """The weights that every rank returned."""
    for result in results:
        assert result is not None
        assert result[0] == "returned", result[1]
    for result in results[1:]:
        assert_same(results[0][1], result[1])
    return results[0][1]


def assert_same(weights, others):
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def uninterrupted():
    """The weights after so many steps of one process."""
    return {steps: go(0, 1, "alone", 0, steps) for steps in (5, 8, 18, 28)}


def test_two_ranks_through_every_layout_and_back_to_one(uninterrupted, tmp_path):
    a, b, c, d = (str(tmp_path / name) for name in "abcd")
    stages = [
        ("ddp", 0, 5, None, a),
        ("rows", 5, 8, a, b),
        ("columns", 8, 8, b, c),
        ("ddp, momentum in parts", 8, 11, c, d),
        ("ddp", 11, 18, d, None),
    ]
    weights = of_ranks(spawn(2, tmp_path / "ranks", chain, str(tmp_path), stages))
    assert_same(uninterrupted[18], weights)
    assert_same(uninterrupted[18], go(0, 1, "alone", 5, 18, a))
    with pytest.raises(AssertionError):  # negative control
        assert_same(uninterrupted[18], go(0, 1, "alone", 5, 17, a))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("ddp", "rows"), ("rows", "hsdp"), ("columns", "ddp")])
def test_saved_on_two_loaded_on_one_then_on_four_and_on_two(uninterrupted, tmp_path, first, then):
    a, b, c = (str(tmp_path / name) for name in "abc")
    of_ranks(spawn(2, tmp_path / "two", go, first, 0, 5, None, a))
    assert_same(uninterrupted[8], go(0, 1, "alone", 5, 8, a, b))
    assert_same(uninterrupted[18], of_ranks(spawn(4, tmp_path / "four", go, then, 8, 18, b, c)))
    assert_same(uninterrupted[28], of_ranks(spawn(2, tmp_path / "back", go, first, 18, 28, c)))


def test_no_state_is_missing_and_options_come_along(tmp_path):
    model, optimizer = made("alone", 1)
    step(model, optimizer, 0, "alone", 1)
    assert model.late not in optimizer.state
    optimizer.param_groups[0]["lr"] = 0.5
    save(tmp_path / "one", model, optimizer, note=["kept", 1])
    other, restored = made("alone", 1)
    assert load(tmp_path / "one", other, restored) == {"note": ["kept", 1]}
    assert restored.param_groups[0]["lr"] == 0.5
    assert restored.param_groups[3]["betas"] == (0.8, 0.9)
    for name, parameter in model.named_parameters():
        mine, theirs = optimizer.state[parameter], restored.state[dict(other.named_parameters())[name]]
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert set(restored.state[other.table]) == {"momentum_buffer", "dual_norm_rms", "dual_norm_weight"}
    assert set(restored.state[other.head]) == {"momentum_buffer", "row_rms", "row_weight"}
    assert restored.state[other.scalars]["step"].item() == 1
    assert {"left_covariance", "right_root", "whitening_age"} <= set(restored.state[other.square])


def test_zeros_are_what_a_first_step_finds():
    (model, optimizer), (other, prepared) = made("alone", 1), made("alone", 1)
    initialize_state(prepared)
    for number in range(7):
        step(model, optimizer, number, "alone", 1)
        step(other, prepared, number, "alone", 1)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for key, value in optimizer.state[mine].items():
            assert torch.equal(value, prepared.state[theirs][key])
            assert value.dtype == prepared.state[theirs][key].dtype


def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path):
    model, optimizer = made("alone", 1)
    save(tmp_path / "one", model, optimizer)
    with pytest.raises(FileExistsError, match="left as it is"):
        save(tmp_path / "one", model, optimizer)
    with pytest.raises(FileNotFoundError, match="not a checkpoint"):
        load(tmp_path, model, optimizer)

    wider = nn.Module()
    wider.table = nn.Parameter(torch.zeros(23, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match="only it has") as failure:
        load(tmp_path / "one", wider, polargrad.PolarGrad([wider.table]))
    assert re.search(r"model.table has the shape \(23, 6\) there and \(23, 7\) here", str(failure.value))
    assert not wider.table.any()

    single = Model("alone", 1).float()
    groups = [{"params": list(single.parameters())[:5]}, {"params": [single.scalars], "rule": "adamw"}]
    narrower = polargrad.PolarGrad(groups, scale="adaptive-nuclear")
    with pytest.raises(ValueError, match=r"torch.float64 there and torch.float32 here"):
        load(tmp_path / "one", single, narrower)
    with pytest.raises(ValueError, match="parameters that are not the model's"):
        save(tmp_path / "two", wider, optimizer)
    with pytest.raises(TypeError, match="JSON"):
        save(tmp_path / "two", model, optimizer, what=object())
    assert not (tmp_path / "two").exists()


def damaged_by(change, name):
    def damage(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def flipped(data):
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


DAMAGE = {
    "a bit of the data": (damaged_by(flipped, "rank-00000.bin"), r"rank-00000.bin does not match its checksum"),
    "data cut short": (damaged_by(lambda data: data[:-3], "rank-00000.bin"), r"rank-00000.bin has \d+ bytes where"),
    "no data": (lambda folder: (folder / "rank-00000.bin").unlink(), r"rank-00000.bin cannot be read"),
    "a bit of the index": (damaged_by(flipped, "index.json"), "index.json is cut short or was changed"),
    "the index cut short": (damaged_by(lambda data: data[:-20], "index.json"), "index.json is cut short"),
    "an empty index": (damaged_by(lambda data: b"", "index.json"), "index.json is cut short"),
    "a deep index": (damaged_by(lambda data: b"[" * 100_000, "index.json"), "index.json is cut short"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_and_nothing_is_loaded(kind, tmp_path):
    damage, message = DAMAGE[kind]
    model, optimizer = made("alone", 1)
    step(model, optimizer, 0, "alone", 1)
    save(tmp_path / "one", model, optimizer)
    damage(tmp_path / "one")
    other, restored = made("alone", 1)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(CheckpointDamaged, match=message):
        load(tmp_path / "one", other, restored)
    assert all(map(torch.equal, before, other.parameters()))


def test_nothing_in_a_checkpoint_is_pickled_or_unpickled(tmp_path, monkeypatch):
    model, optimizer = made("alone", 1)
    save(tmp_path / "one", model, optimizer, step=3)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["index.json", "rank-00000.bin"]

    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    for module in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(module, refuse)
    assert load(tmp_path / "one", *made("alone", 1)) == {"step": 3}
    # A checkpoint of torch's own format, whose metadata is a pickle, is refused unread.
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / ".metadata").write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")
    with pytest.raises(ValueError, match="read by unpickling"):
        load(tmp_path / "planted", model, optimizer)


def forged(folder, change):
    """Change the content of an index, or replace it by what `change` returns, and give it a checksum that agrees."""
    path = folder / "index.json"
    content = json.loads(path.read_text())["content"]
    new = change(content)
    content = content if new is None else new
    path.write_text(json.dumps({"sha256": _digest(content), "content": content}))


@pytest.mark.parametrize(
    "planted",
    [
        lambda code: {"method": code},
        lambda code: {"method": {"name": code}},
        lambda code: {"geometry": code},
        lambda code: {"geometry": {"name": code}},
        lambda code: {"geometry": {"name": "spectral", "method": code}, "method": "auto"},
        lambda code: {"geometry": {"name": "spectral", "method": {"name": code}}, "method": "auto"},
        lambda code: {"scale": code},
        lambda code: {"whitening": {"name": code}},
    ],
)
def test_code_that_an_index_names_is_not_run(planted, tmp_path):
    trap = tmp_path / "trap.py"
    trap.write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n")
    model, optimizer = made("alone", 1)
    save(tmp_path / "one", model, optimizer)
    options = planted(f"{trap}:Trap")
    forged(tmp_path / "one", lambda content: content["plain"]["groups"][0]["options"].update(options))
    with pytest.raises(ValueError, match=r"code from outside that is not loaded here|must be one of"):
        load(tmp_path / "one", *made("alone", 1))
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(ValueError, match="has no 'Trap'"):  # the trap does spring where code is asked for
        polargrad.PolarGrad([nn.Parameter(torch.zeros(2, 2))], method=f"{trap}:Trap")
    assert (tmp_path / "sprung").exists()


def test_an_entry_point_that_an_index_names_is_not_imported(tmp_path, monkeypatch):
    announced = {"halley": "a_module_that_is_not_there:Halley"}
    monkeypatch.setattr("polargrad.linalg.registry.announced", lambda group: announced)
    model, optimizer = made("alone", 1)
    save(tmp_path / "one", model, optimizer)
    forged(tmp_path / "one", lambda content: content["plain"]["groups"][0]["options"].update(method="halley"))
    with pytest.raises(ValueError, match="make the optimizer with this method first"):
        load(tmp_path / "one", *made("alone", 1))


def with_options(number, **options):
    return lambda content: content["plain"]["groups"][number]["options"].update(options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_options(0, lr=float("nan")), "options of group 0 are refused: lr must be finite"),
        (with_options(0, lr="x"), "options of group 0 are refused: lr must be a number"),
        (with_options(1, scale="bogus"), "options of group 1 are refused: scale must be one of"),
        (with_options(1, geometry={}), "options of group 1 are refused: geometry must be a name"),
        (with_options(1, max_steps="x"), "options of group 1 are refused"),
        (with_options(1, layout=[]), "options of group 1 are refused"),
        (with_options(0, rule="adamw"), "rule is 'adamw' there and 'polar' here"),
        (with_options(1, whitening="two-sided"), "they need left_covariance of parameter 0 .* which was not saved"),
        (with_options(0, params=[]), "does not describe a checkpoint .it names options of a group that cannot be"),
        (with_options(0, param_names=["a"]), "names options of a group"),
    ],
)
def test_options_that_are_refused_change_nothing(change, message, tmp_path):
    model, optimizer = made("alone", 1)
    step(model, optimizer, 0, "alone", 1)
    save(tmp_path / "one", model, optimizer)
    forged(tmp_path / "one", change)
    other, restored = made("alone", 1)
    step(other, restored, 1, "alone", 1)
    before = [p.clone() for p in other.parameters()]
    momentum = restored.state[other.table]["momentum_buffer"].clone()
    groups = [dict(group) for group in restored.param_groups]
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "one", other, restored)
    assert all(map(torch.equal, before, other.parameters()))
    assert torch.equal(momentum, restored.state[other.table]["momentum_buffer"])
    assert all(one.keys() == group.keys() for one, group in zip(groups, restored.param_groups, strict=True))
    assert all(one["lr"] == group["lr"] for one, group in zip(groups, restored.param_groups, strict=True))


def test_a_state_that_another_optimizer_refuses_changes_nothing(tmp_path):
    model = Model("alone", 1)
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, 0, "alone", 1)
    save(tmp_path / "one", model, optimizer)
    forged(tmp_path / "one", with_options(0, lr="x"))
    other = Model("alone", 1)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ValueError, match="lr of group 0 must be a number"):
        load(tmp_path / "one", other, torch.optim.AdamW(other.parameters()))
    assert all(map(torch.equal, before, other.parameters()))


def in_extra(value):
    return lambda content: content["plain"]["extra"].update(more=value)


def with_tensor(shape, *chunks):
    at = [[offset, size, "rank-00000.bin", 0] for offset, size in chunks]
    return lambda content: content["tensors"].update(more=["float64", shape, at])


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [],
        lambda content: [1],
        lambda content: "x",
        lambda content: content["plain"].update(groups="x"),
        lambda content: content["plain"].update(groups={}),
        *map(in_extra, [{"$dtype": "bogus"}, {"$device": "bogus"}, {"$bytes": "zz"}, {"$tuple": 5}, {"$tuple": "ab"}]),
        *map(in_extra, [{"$mapping": [1]}, {"$mapping": [[[1], 2]]}, {"$mapping": 3}, {"$dtype": [1]}, {"$other": 1}]),
        *map(in_extra, [{"$tensor": "nowhere"}, {"$tensor": ["a"]}, {"$mapping": [["a", {"$tensor": "nowhere"}]]}]),
        with_options(0, lr={"$tensor": "model.table"}),
        with_options(0, betas={"$tuple": 5}),
        lambda content: content["plain"].update(extra={"$tuple": []}),
        with_tensor([2**61, 2**61, 0]),
        with_tensor([4], ([0], [2]), ([1], [3])),
        with_tensor([4], ([0], [2]), ([1], [2])),
        with_tensor([2, 3], ([0, 0], [2, 2]), ([1, 1], [1, 2])),
        with_tensor([3, 2], ([0, 0], [1, 2]), ([1, 0], [2, 1]), ([0, 1], [2, 1])),
        with_tensor([4], ([0], [2]), ([2], [1])),
    ],
)
def test_an_index_that_makes_no_sense_is_damaged(change, tmp_path):
    model, optimizer = made("alone", 1)
    save(tmp_path / "one", model, optimizer, step=3)
    forged(tmp_path / "one", lambda content: None)
    assert load(tmp_path / "one", *made("alone", 1)) == {"step": 3}
    forged(tmp_path / "one", change)
    with pytest.raises(CheckpointDamaged, match="does not describe a checkpoint"):
        load(tmp_path / "one", *made("alone", 1))


def test_parts_that_fill_a_tensor_are_no_overlap():
    grid = [((i, j), (2, 1)) for i in (0, 2, 4) for j in range(3)]
    assert not _overlap(grid)
    assert not _overlap([*grid, ((0, 1), (0, 3))])
    assert _overlap([*grid, ((5, 2), (1, 1))])
    assert not _overlap([((), ())])


@pytest.mark.parametrize("target", ["a folder", "nothing"])
def test_a_link_in_the_place_of_a_save_is_left_alone(target, tmp_path):
    model, optimizer = made("alone", 1)
    if target == "a folder":
        (tmp_path / target).mkdir()
        (tmp_path / target / "rank-00000.bin").write_bytes(b"mine")
    for place in ("one.part", "two"):
        (tmp_path / place).symlink_to(tmp_path / target)
        with pytest.raises(FileExistsError, match=f"{place} exists and is"):
            save(tmp_path / place.removesuffix(".part"), model, optimizer)
        assert (tmp_path / place).is_symlink()
    assert target == "nothing" or (tmp_path / target / "rank-00000.bin").read_bytes() == b"mine"


def test_a_save_that_was_killed_does_not_block_its_place(tmp_path):
    model, optimizer = made("alone", 1)
    stale = tmp_path / "one.part"
    stale.mkdir()
    (stale / "rank-00003.bin").write_bytes(b"half")
    save(tmp_path / "one", model, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]
    (tmp_path / "two.part").mkdir()
    (tmp_path / "two.part" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no unfinished checkpoint"):
        save(tmp_path / "two", model, optimizer)
    assert (tmp_path / "two.part" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_failed_write_leaves_nothing_and_is_an_os_error(tmp_path, monkeypatch, number):
    model, optimizer = made("alone", 1)

    def fail(handle):
        raise OSError(number, "it failed")

    monkeypatch.setattr("polargrad.distributed.checkpoint.os.fsync", fail)
    with pytest.raises(OSError, match="it failed") as failure:
        save(tmp_path / "one", model, optimizer)
    assert failure.value.errno == number
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.01)),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ],
)
def test_an_optimizer_of_torch_goes_on_alike(make, tmp_path):
    def go_on(model, optimizer, first, last):
        for number in range(first, last):
            step(model, optimizer, number, "alone", 1)
        return [p.detach().clone() for p in model.parameters()]

    model = Model("alone", 1)
    optimizer = make(list(model.parameters()))
    go_on(model, optimizer, 0, 8)
    save(tmp_path / "one", model, optimizer, where={"at": [torch.arange(3), float("inf")]})
    other = Model("alone", 1)
    restored = make(list(other.parameters()))
    rate = restored.param_groups[0]["lr"]
    extra = load(tmp_path / "one", other, restored)
    assert torch.equal(extra["where"]["at"][0], torch.arange(3))
    assert extra["where"]["at"][1] == float("inf")
    if isinstance(rate, torch.Tensor):
        assert restored.param_groups[0]["lr"] is rate
    assert all(map(torch.equal, go_on(model, optimizer, 8, 12), go_on(other, restored, 8, 12)))

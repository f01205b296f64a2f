"""Optimizers of a whole model by role: every recipe, and classes from outside."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from polargrad import PolarGrad
from polargrad.distributed.checkpoint import load, save
from polargrad.lab.lm import decoder
from polargrad.lab.recipes import RECIPES, optimizer_for
from polargrad.lab.run.build import build_optimizer
from polargrad.lab.run.spec import LanguageModel, RunSpec
from polargrad.lab.train import LoopConfig
from polargrad.lab.train.optimizers import CombinedOptimizer, outside_rules
from polargrad.optim.roles import roles

SIZES = {"hidden_size": 16, "layers": 1, "heads": 2, "mlp": 32}
FOREIGN = ["soap", "shampoo"]

MINE = '''
import torch


class Mine(torch.optim.Optimizer):
    """Sign descent on an average of the gradients."""

    def __init__(self, params, lr=1e-3, beta=0.9, whole=1):
        self.whole = whole
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.lerp_(p.grad, 1 - group["beta"])
                    p.sub_(average.sign(), alpha=group["lr"])


class Counting(Mine):
    """Keeps what its step depends on beside its state."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)
        self.steps = 0

    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            group["beta"] = self.steps / (self.steps + 1)
        super().step()


class Objects(Mine):
    def step(self, closure=None):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["kept"] = {"inside": [Mine]}


class Unloadable(Mine):
    def load_state_dict(self, state_dict):
        raise KeyError("average")


class Rate(Mine):
    def __init__(self, params, lr):
        super().__init__(params, lr)


class Failing(Mine):
    def step(self, closure=None):
        raise RuntimeError("it broke")


class Quitting(Mine):
    def step(self, closure=None):
        raise SystemExit("I quit")


class Closing(Mine):
    def step(self, closure=None):
        return closure()


class FailingLater(Mine):
    def step(self, closure=None):
        self.param_groups[0]["count"] = self.param_groups[0].get("count", 0) + 1
        if self.param_groups[0]["count"] > 5:
            raise RuntimeError("it broke")


class Replacing(Mine):
    def step(self, closure=None):
        for group in self.param_groups:
            group["params"] = [torch.nn.Parameter(p - group["lr"]) for p in group["params"]]


class Cutting(Mine):
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data = p.data[:1]


class Unmade(Mine):
    def __init__(self, params, lr=1e-3):
        raise KeyError("size")


class NotANumber(Mine):
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.fill_(float("nan"))


class Bare(torch.optim.Optimizer):
    def __init__(self):
        pass


class Large(Mine):
    def step(self, closure=None):
        if min(self.param_groups[0]["params"][0].shape) < 16:
            raise ValueError("too small")
        super().step()


def function(params): ...
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    return path


def spec(recipe, changes=()):
    model = LanguageModel(**SIZES, kv_heads=2, vocabulary=64)
    options = optimizer_for(recipe, set(roles(model.build(device="meta")).values()), changes)
    return RunSpec("x", model, options, loop=LoopConfig(3))


def built(recipe, changes=()):
    model = decoder(**SIZES, vocabulary=64)
    return model, build_optimizer(spec(recipe, changes), model)


def stepped(model, optimizer, steps):
    losses = []
    for step in steps:
        optimizer.zero_grad()
        tokens = torch.randint(0, 64, (4, 17), generator=torch.Generator().manual_seed(step % 2))
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def go_on(recipe, changes=()):
    """The largest difference of weights between 6 steps and 3 + 3 over a checkpoint file that runs no code."""
    model, optimizer = built(recipe, changes)
    stepped(model, optimizer, range(3))
    folder = Path(tempfile.mkdtemp())
    save(folder / "one", model, optimizer)
    stepped(model, optimizer, range(3, 6))
    other, again = built(recipe, changes)
    load(folder / "one", other, again)
    shutil.rmtree(folder)
    stepped(other, again, range(3, 6))
    return max((p - q).abs().max().item() for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns(recipe):
    if recipe in FOREIGN:
        pytest.importorskip("pytorch_optimizer")
    model, optimizer = built(recipe)
    losses = stepped(model, optimizer, range(6))
    assert losses[-1] < losses[0]
    assert {group["role"] for group in optimizer.param_groups} == {"hidden", "embedding", "head", "vector"}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("recipe", FOREIGN)
def test_other_libraries_optimizers_go_on_from_a_checkpoint(recipe):
    pytest.importorskip("pytorch_optimizer")
    assert go_on(recipe) == 0.0


@pytest.mark.parametrize("recipe", FOREIGN)
def test_without_the_library_the_error_names_it(recipe, monkeypatch):
    for name in [name for name in sys.modules if name.endswith("train.shampoo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match=r"cannot be imported: .*pytorch_optimizer") as caught:
        built(recipe)
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_class_from_a_file_steps_every_role_and_goes_on(mine):
    changes = ["*.lr=0.01", "head.beta=0.5"]
    model, optimizer = built(f"{mine}:Mine", changes)
    assert type(optimizer).__name__ == "Mine"
    assert {g["role"]: (g["lr"], g["beta"]) for g in optimizer.param_groups}["head"] == (0.01, 0.5)
    losses = stepped(model, optimizer, range(6))
    assert losses[-1] < losses[0]
    assert go_on(f"{mine}:Mine", changes) == 0.0


def test_a_class_shares_a_model_with_a_recipe(mine):
    recipe = f"{mine}:Mine+muon+polargrad"
    _, optimizer = built(recipe)
    assert isinstance(optimizer, CombinedOptimizer)
    ours, theirs = optimizer.parts
    assert isinstance(ours, PolarGrad)
    assert [group["role"] for group in theirs.param_groups] == ["hidden"]
    assert outside_rules(spec(recipe).optimizer) == [f"{mine}:Mine"]
    assert go_on(recipe) == 0.0


def test_a_combined_optimizer_is_its_parts():
    def made():
        W, b = (torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (2,)))
        return W, b, torch.optim.SGD([W], lr=0.1, momentum=0.9), torch.optim.Adam([b], lr=0.01)

    def step(optimizers, *parameters):
        for p in parameters:
            p.grad = torch.full_like(p, 0.5)
        for optimizer in optimizers:
            optimizer.step()

    W, b, sgd, adam = made()
    V, c, *parts = made()
    both = CombinedOptimizer(parts)
    for optimizer in (sgd, *both.param_groups[:1]):
        (optimizer if isinstance(optimizer, dict) else optimizer.param_groups[0])["lr"] = 0.3
    for _ in range(3):
        step((sgd, adam), W, b)
        step((both,), V, c)
    assert torch.equal(W, V)
    assert torch.equal(b, c)
    assert set(both.state) == {V, c}
    assert both.state[c]["exp_avg"].shape == (2,)
    wrong = both.state_dict()
    wrong["param_groups"] = wrong["param_groups"][:1]
    with pytest.raises(ValueError, match="other numbers of parameters"):
        both.load_state_dict(wrong)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Counting", (), "takes other steps after its state dict was saved and loaded"),
        ("Objects", (), r"holds a type at state\.0\.kept\.inside\.0, and a checkpoint runs no code"),
        ("Unloadable", (), "cannot go on from its own state dict: KeyError"),
        ("Rate", (), r"mine\.Rate has no learning rate of its own for .*give one, as with --set mine\.lr=0\.001"),
        ("function", (), "is a function, and not an optimizer"),
        ("Failing", (), "cannot step: RuntimeError: it broke"),
        ("Quitting", (), "cannot step: SystemExit: I quit"),
        ("Closing", (), "cannot step: TypeError: 'NoneType' object is not callable"),
        ("FailingLater", (), "cannot step: RuntimeError: it broke"),
        ("Replacing", (), "cannot step: it puts other tensors into its groups"),
        ("Cutting", (), "cannot step: it changes the shape of parameters"),
        ("Unmade", (), r"cannot be made with lr=0\.001: KeyError: 'size'"),
        ("Bare", ("*.lr=1",), "takes no options, and lr is given; leave it out"),
        ("Absent", (), "has no 'Absent'; it has Mine, Counting, Objects"),
        ("Mine", ("*.momentum=0.9",), "unknown option 'momentum'; the allowed names are 'lr', 'beta', 'whole'"),
        ("Mine", ("head.whole=2",), "has one whole for all roles, and they differ in it"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(mine, name, changes, message):
    with pytest.raises(ValueError, match=message):
        built(f"{mine}:{name}", changes)


@pytest.mark.parametrize("name", ["Large", "NotANumber"])
def test_what_steps_a_model_alone_or_diverges_is_left_to_the_run(mine, name):
    model, optimizer = built(f"{mine}:{name}")
    assert len(stepped(model, optimizer, range(1))) == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("torch.optim.LBFGS", "needs a closure in each step"),
        ("torch.optim.SparseAdam", "cannot step: RuntimeError: SparseAdam does not support dense gradients"),
        ("torch.optim:Muon", r"only supports 2D parameters.*; torch.optim:Muon\+adamw steps the hidden matrices alone"),
    ],
)
def test_torchs_own_that_do_not_fit_are_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        built(reference)


def test_a_bad_option_is_not_laid_to_the_vectors():
    with pytest.raises(ValueError, match=r"torch\.optim:SGD cannot be made with .*momentum='foo'") as failure:
        built("torch.optim:SGD", ("*.momentum=foo",))
    assert "hidden matrices alone" not in str(failure.value)


@pytest.mark.parametrize("reference", ["torch.optim.RAdam", "torch.optim:NAdam", "torch.optim:Muon+adamw"])
def test_torchs_own_take_part(reference):
    assert go_on(reference) == 0.0

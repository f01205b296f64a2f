"""Options are plain data, checked by rule; what is given and not used is refused, and says by what it would be used."""

import copy
import inspect
import json

import pytest
import torch

import polargrad
from polargrad.geometry import GEOMETRIES, Spectral
from polargrad.optim.options import OPTIONS, inherited_options, resolve, without_accuracy

ELSEWHERE = [name for name in GEOMETRIES if name != "spectral"]
ORDINARY = {"momentum": 0.5, "momentum_order": "heavy-ball", "nesterov": True, "scale": "rms", "scope": "group",
            "step_rule": "fixed", "normalize_rows": 0.9, "whitening": "one-sided", "geometry": "rows", "method": "svd",
            "max_steps": 2, "accuracy": 0.1, "momentum_dtype": "float32", "workspace": 10, "layout": "transposed",
            "split": [1, 2], "heads": 2, "stack": 2, "interleave": 2, "norm_floor": 1e-6}  # fmt: skip
SMOOTHNESS = {"step_rule": {"name": "smoothness", "smoothness": 2.0}, "momentum": 0.0}
POLYAK = {"step_rule": {"name": "polyak", "minimum": 0.0}, "momentum": 0.0}


def matrix(shape=(3, 3)):
    return torch.nn.Parameter(torch.ones(shape))


def refused(match, **options):
    """In the constructor, in a group, and when it is set in a group later, with nothing else changed."""
    with pytest.raises(ValueError, match=match):
        polargrad.PolarGrad([matrix()], **options)
    with pytest.raises(ValueError, match=match):
        polargrad.PolarGrad([{"params": [matrix()], **options}])
    optimizer = polargrad.PolarGrad([matrix()])
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [matrix()], **options})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0].update(options)
    optimizer.param_groups[0]["params"][0].grad = torch.eye(3)
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert torch.equal(optimizer.param_groups[0]["params"][0], matrix())


@pytest.mark.parametrize("option", ["method", "max_steps", "accuracy"])
@pytest.mark.parametrize("geometry", ELSEWHERE)
def test_geometries_without_a_polar_method(geometry, option):
    match = rf"{option}=.* is used by geometry='spectral', not by geometry='{geometry}'"
    refused(match, geometry=geometry, **{option: ORDINARY[option]})
    with pytest.raises(
        ValueError, match=rf"geometry='{geometry}' does not use '{option}'; it is used by geometry='spec"
    ):
        polargrad.PolarGrad([matrix()], geometry={"name": geometry, option: ORDINARY[option]})


@pytest.mark.parametrize("option", sorted(OPTIONS["polar"] - OPTIONS["adamw"]))
def test_options_of_polar_groups_in_adamw_groups(option):
    with pytest.raises(ValueError, match=rf"{option} is used by rule='polar', not by rule='adamw' of this group"):
        polargrad.PolarGrad([{"params": [matrix()], "rule": "adamw", option: ORDINARY[option]}])


@pytest.mark.parametrize("option", [{"betas": (0.9, 0.95)}, {"eps": 1e-8}])
def test_options_of_adamw_groups_in_polar_groups(option):
    with pytest.raises(ValueError, match=rf"{next(iter(option))} is used by rule='adamw', not by rule='polar'"):
        polargrad.PolarGrad([{"params": [matrix()], **option}])


@pytest.mark.parametrize(
    "option", ["layout", "split", "heads", "stack", "interleave", "norm_floor", "rule", "betas", "eps"]
)
def test_what_a_group_is_belongs_into_the_group(option):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        polargrad.PolarGrad([matrix()], **{option: 1})


@pytest.mark.parametrize(
    ("scale", "field", "users"),
    [
        ("none", "beta", "scale='adaptive-nuclear'"),
        ("none", "base", "scale='adaptive-nuclear'"),
        ("none", "alpha", "scale='nuclear' or scale='adaptive-nuclear'"),
        ("spectral", "alpha", "scale='nuclear' or scale='adaptive-nuclear'"),
        ("rms", "beta", "scale='adaptive-nuclear'"),
        ("mean-singular", "alpha", "scale='nuclear' or scale='adaptive-nuclear'"),
        ("nuclear", "beta", "scale='adaptive-nuclear'"),
    ],
)
def test_fields_of_other_scales(scale, field, users):
    refused(rf"scale='{scale}' does not use '{field}'; it is used by {users}", scale={"name": scale, field: 0.5})


@pytest.mark.parametrize("scale", ["none", "spectral", "rms"])
def test_a_shared_norm_that_the_scale_does_not_use(scale):
    refused(rf"scope='group' shares .* not scale='{scale}'", scale=scale, scope="group")


@pytest.mark.parametrize(
    ("match", "rule"),
    [
        ("step_rule='fixed' does not use 'smoothness'; it is used by step_rule='smoothness'",
         {"name": "fixed", "smoothness": 1.0}),
        ("step_rule='smoothness' does not use 'minimum'; it is used by step_rule='polyak' or step_rule='capped-polyak'",
         {"name": "smoothness", "smoothness": 1.0, "minimum": 0.0}),
        ("step_rule='smoothness' needs smoothness: give", {"name": "smoothness"}),
        ("step_rule='polyak' needs minimum: give", "polyak"),
        ("step_rule='smoothness': smoothness must be positive and finite, got 0.0",
         {"name": "smoothness", "smoothness": 0.0}),
        ("step_rule='polyak': minimum must be finite", {"name": "polyak", "minimum": float("inf")}),
        ("step_rule must be one of 'fixed', 'smoothness', 'polyak', 'capped-polyak', got 'armijo'", "armijo"),
    ],
)  # fmt: skip
def test_fields_of_other_step_rules(match, rule):
    refused(match, step_rule=rule)


@pytest.mark.parametrize("rule", [SMOOTHNESS, POLYAK], ids=["smoothness", "polyak"])
@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("is a rule for scale='nuclear' with alpha=1, got scale='rms'", {"scale": "rms"}),
        ("is a rule for scale='nuclear' with alpha=1", {"scale": {"name": "nuclear", "alpha": 0.5}}),
        ("direction of the gradient itself, got momentum=0.9; give momentum=0", {"momentum": 0.9}),
        ("direction of the gradient itself", {"momentum": 0.9, "nesterov": True}),
        ("which normalize_rows=0.9 changes", {"normalize_rows": 0.9}),
        ("leave whitening out", {"whitening": "one-sided"}),
        ("knows no weight decay", {"weight_decay": 0.1}),
        ("nesterov=True needs momentum > 0", {"nesterov": True}),
    ],
)
def test_where_a_theorem_does_not_hold(rule, match, options):
    refused(match, **{**rule, **options})


def test_a_default_that_a_theorem_does_not_allow():
    with pytest.raises(ValueError, match=r"got momentum=0.95; give momentum=0"):
        polargrad.PolarGrad([matrix()], step_rule=SMOOTHNESS["step_rule"])


def test_a_minimum_and_the_way_up():
    refused("goes down to a minimum, got maximize=True", **POLYAK, maximize=True)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"normalize_rows as a mapping has the key 'beta' alone", {"normalize_rows": {"decay": 0.9}}),
        (r"normalize_rows must lie in \[0, 1\)", {"normalize_rows": {"beta": 1.0}}),
        (r"normalize_rows must be a number, got '0.9'", {"normalize_rows": "0.9"}),
        (r"normalize_rows must be a number, got None", {"normalize_rows": {"beta": None}}),
        (r"whitening must be one of 'two-sided', 'one-sided', got 'left'", {"whitening": "left"}),
        (r"whitening='two-sided' does not use 'exponent'", {"whitening": {"name": "two-sided", "exponent": 0.3}}),
        (r"whitening='two-sided': power must lie in \[0, 0.5\], got 0.6",
         {"whitening": {"name": "two-sided", "power": 0.6}}),
        (r"whitening='two-sided': power must lie in \[0, 0.5\], got -0.1",
         {"whitening": {"name": "two-sided", "power": -0.1}}),
        (r"whitening='one-sided': beta must lie in \[0, 1\), got 1.0",
         {"whitening": {"name": "one-sided", "beta": 1.0}}),
        (r"whitening='one-sided': damping must lie in \(0, 1\], got 0.0",
         {"whitening": {"name": "one-sided", "damping": 0.0}}),
        (r"whitening='one-sided': every must be a positive integer, got 2.0",
         {"whitening": {"name": "one-sided", "every": 2.0}}),
        (r"forms the 3 x 3 covariance of the left side of a matrix \(3, 3\), and max_side is 2; leave whitening out",
         {"whitening": {"name": "two-sided", "max_side": 2}}),
        (r"the host counts the 5 steps between the roots of whitening, and capturable=True",
         {"whitening": "two-sided", "capturable": True}),
        (r"scale='adaptive-nuclear': base must be one of 'none', 'spectral', 'rms', got 'cubic'",
         {"scale": {"name": "adaptive-nuclear", "base": "cubic"}}),
        (r"scale='adaptive-nuclear': beta must lie in \[0, 1\)", {"scale": {"name": "adaptive-nuclear", "beta": 1.0}}),
        (r"scale='nuclear': alpha must lie in \[0, 1\]", {"scale": {"name": "nuclear", "alpha": 2.0}}),
        (r"method='svd' does not use 'max_steps'; it is used by", {"method": {"name": "svd", "max_steps": 2}}),
        (r"method='qdwh': max_steps must be", {"method": {"name": "qdwh", "max_steps": 0}}),
        (r"no steps to limit", {"method": "svd", "max_steps": 2}),
        (r"give accuracy or max_steps, not both", {"method": "auto", "max_steps": 2, "accuracy": 0.1}),
        (r"method is given twice", {"geometry": {"name": "spectral", "method": "svd"}, "method": "qdwh"}),
        (r"maximize must be one of False, True, got 1", {"maximize": 1}),
        (r"momentum must be a number, got 'high'", {"momentum": "high"}),
        (r"workspace must be a positive number of bytes", {"workspace": 1.5}),
        (r"capturable=True cannot go with on_nonfinite='raise'", {"capturable": True, "on_nonfinite": "raise"}),
    ],
)  # fmt: skip
def test_other_refusals(match, options):
    refused(match, **options)


@pytest.mark.parametrize("option", ["scale", "step_rule", "geometry", "method"])
def test_choices_of_another_kind(option):
    with pytest.raises(TypeError, match=rf"{option} must be a name"):
        polargrad.PolarGrad([matrix()], **{option: 5})


def test_the_constructor_takes_few_arguments():
    assert len(inspect.signature(polargrad.PolarGrad).parameters) <= 23


def test_the_rate_is_looked_at_before_the_parameters():
    with pytest.raises(ValueError, match=r"Tensor lr must be 1-element .* got shape \(2,\)"):
        polargrad.PolarGrad([], lr=torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (torch.tensor([0.1, 0.2]), r"shape \(2,\), torch.float32, torch.strided, on cpu;"),
        (torch.tensor([]), r"shape \(0,\)"),
        (torch.tensor(0.1, device="meta"), r"shape \(\), torch.float32, torch.strided, on meta;"),
        (torch.tensor(1), "torch.int64"),
        (torch.tensor(True), "torch.bool"),
        (torch.tensor(0.1 + 0j), "torch.complex64"),
        (torch.tensor(0.1).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (torch.tensor([0.1]).to_sparse(), "torch.sparse_coo"),
        (torch.tensor(0.1, requires_grad=True), "with requires_grad=True"),
        (torch.tensor(0.1, requires_grad=True) * 2, "with requires_grad=True"),
    ],
    ids=lambda value: "" if isinstance(value, torch.Tensor) else value,
)
def test_a_tensor_without_one_number_is_no_rate(rate, told):
    match = f"Tensor lr.* must be 1-element.*got .*{told}.*give a number"
    with pytest.raises(ValueError, match=match):
        polargrad.PolarGrad([matrix()], lr=rate)
    for capturable in (False, True):
        optimizer = polargrad.PolarGrad([matrix()], lr=0.1, capturable=capturable)
        with pytest.raises(ValueError, match=match):
            optimizer.add_param_group({"params": [matrix()], "lr": rate})
        assert len(optimizer.param_groups) == 1
        (p,) = optimizer.param_groups[0]["params"]
        before, p.grad = p.detach().clone(), torch.ones_like(p)
        optimizer.param_groups[0]["lr"] = rate
        with pytest.raises(ValueError, match=match):
            optimizer.step()
        assert torch.equal(p, before)


def test_a_group_inherits_what_its_own_choices_use():
    groups = [
        {"params": [matrix()], "geometry": "rows"},
        {"params": [matrix()], "method": "svd"},
        {"params": [matrix()], "scale": "rms"},
        {"params": [matrix()], "accuracy": 0.1, "method": "auto"},
        {"params": [matrix()], "rule": "adamw"},
        {"params": [matrix()]},
    ]
    given = {"method": "qdwh", "max_steps": 3, "scope": "group", "weight_decay": 0.1, "momentum": 0.5}
    rows, svd, rms, accurate, adamw, plain = polargrad.PolarGrad(groups, **given).param_groups
    assert (rows["method"], rows["max_steps"], rows["scope"]) == ("auto", None, "group")
    assert (svd["method"], svd["max_steps"]) == ("svd", None)
    assert (rms["method"], rms["max_steps"], rms["scope"]) == ("qdwh", 3, "matrix")
    assert (accurate["max_steps"], accurate["accuracy"]) == (None, 0.1)
    assert set(adamw) == {*OPTIONS["adamw"], "params"}
    assert (adamw["weight_decay"], adamw["betas"]) == (0.1, (0.9, 0.95))
    assert {option: plain[option] for option in given} == given
    assert set(plain) == {*OPTIONS["polar"], "params"}


def test_a_role_keeps_what_an_overlaid_choice_uses():
    muon = {"lr": 0.1, "momentum": 0.9, "method": "newton-schulz", "max_steps": 5}
    assert inherited_options({"geometry": "frobenius"}, muon) == {"lr": 0.1, "momentum": 0.9}
    assert inherited_options({"rule": "adamw"}, muon) == {"lr": 0.1}
    table = {"method": "auto", "accuracy": 0.15, "lr": 0.1}
    assert without_accuracy(table, {}, {"method": "svd"}) == without_accuracy(table, {"geometry": "rows"})
    assert without_accuracy(table, {"momentum": 0.5}) == table
    assert inherited_options({"method": "polar-express"}, table) == {"lr": 0.1, "accuracy": 0.15}  # of a constructor
    assert inherited_options({"lr": 0.2}, muon) == {key: value for key, value in muon.items() if key != "lr"}
    model = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False))
    for own in ({"rule": "adamw", "lr": 0.028, "betas": (0.8, 0.9)}, {"geometry": "rows"}, {"method": "svd"}):
        optimizer = polargrad.PolarGrad(polargrad.parameter_groups(model, hidden=own))
        assert optimizer.param_groups[0]["lr"] == 0.028


OBJECTS = [
    {"geometry": Spectral("qdwh", max_steps=2)},
    {"geometry": Spectral(polargrad.linalg.NewtonSchulz(max_steps=3))},
    {"geometry": polargrad.geometry.Frobenius()},
    {"method": polargrad.linalg.QDWH(max_steps=2)},
    {"method": {"name": "newton-schulz", "coefficients": [[1.5, -0.5, 0.0]], "max_steps": 3}},
    {"scale": {"name": "adaptive-nuclear", "base": "spectral"}, "scope": "group"},
    {"step_rule": {"name": "smoothness", "smoothness": 2.0}, "momentum": 0.0},
    {"normalize_rows": {"beta": 0.9}},
    {"whitening": {"name": "two-sided", "power": 0.25, "every": 2}},
    {"whitening": polargrad.optim.whitening.OneSided(beta=0.9)},
]


@pytest.mark.parametrize("options", OBJECTS, ids=str)
def test_groups_are_plain_data_and_go_round(options):
    """Through JSON, a state dict, a copy and another constructor, the next step is the same."""
    ends = []
    for way in ("as given", "json", "state dict", "deepcopy", "group again"):
        W = torch.nn.Parameter(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
        optimizer = polargrad.PolarGrad([W], **options)
        group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        assert json.loads(json.dumps(group)) is not None
        if way == "json":
            optimizer = polargrad.PolarGrad([{"params": [W], **json.loads(json.dumps(group))}])
        elif way == "state dict":
            state = optimizer.state_dict()
            optimizer = polargrad.PolarGrad([W], method="svd", lr=7.0)
            optimizer.load_state_dict(state)
        elif way == "deepcopy":
            optimizer = copy.deepcopy(optimizer)
            (W,) = optimizer.param_groups[0]["params"]
        elif way == "group again":
            optimizer = polargrad.PolarGrad([{"params": [W], **group}])
        W.grad = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 1.0]])
        optimizer.step()
        ends.append(W.detach().clone())
    assert not torch.equal(ends[0], torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    for end in ends[1:]:
        assert torch.equal(ends[0], end)


def test_an_object_and_its_name_are_the_same_choice():
    named, made = (
        resolve(polargrad.PolarGrad([matrix()], **options).param_groups[0]).geometry
        for options in ({"method": "qdwh", "max_steps": 2}, {"geometry": Spectral("qdwh", max_steps=2)})
    )
    assert named == made


def test_a_refused_state_changes_nothing():
    optimizer = polargrad.PolarGrad([matrix()], lr=0.5)
    state = optimizer.state_dict()
    state["param_groups"][0].update({"lr": 0.1, "geometry": "rows", "method": "svd"})
    with pytest.raises(ValueError, match="method='svd' is used by geometry='spectral', not by geometry='rows'"):
        optimizer.load_state_dict(state)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["geometry"]) == (0.5, "spectral")


def test_schedulers_may_write_what_they_like():
    W = matrix()
    optimizer = polargrad.PolarGrad([{"params": [W]}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=4, cycle_momentum=True)
    momenta = []
    for _ in range(3):
        W.grad = torch.eye(3)
        optimizer.step()
        scheduler.step()
        momenta.append(optimizer.param_groups[0]["momentum"])
    assert len(set(momenta)) > 1
    assert optimizer._current_rules()[0].momentum == momenta[-1]


@pytest.mark.parametrize(
    ("own", "accuracy"),
    [
        ({"geometry": Spectral()}, None),
        ({"geometry": Spectral("newton-schulz", max_steps=5)}, None),
        ({"geometry": {"name": "spectral", "accuracy": 0.1}}, None),
        ({"method": "newton-schulz"}, None),
        ({"method": "qdwh", "accuracy": 0.01}, 0.01),
        ({"accuracy": "full"}, "full"),
        ({"momentum": 0.5}, 0.15),
    ],
    ids=str,
)
def test_the_accuracy_of_a_table_goes_with_its_method(own, accuracy):
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9, bias=False))
    groups = polargrad.parameter_groups(model, rules=[("1.weight", "head")], head=own)
    optimizer = polargrad.PolarGrad(groups)
    assert [group["accuracy"] for group in optimizer.param_groups if group["role"] == "head"] == [accuracy]


def test_an_accuracy_given_for_a_role_stays_beside_the_method_of_a_rule():
    model = torch.nn.Sequential(torch.nn.Linear(4, 9, bias=False))
    groups = polargrad.parameter_groups(
        model, rules=[("0.weight", {"role": "head", "method": "svd"})], head={"accuracy": 0.3}
    )
    assert [(group["method"], group["accuracy"]) for group in groups] == [("svd", 0.3)]

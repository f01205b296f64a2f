"""The entry that torch's test machinery keeps per optimizer, for PolarGrad: inputs that work, inputs that must fail."""

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

import polargrad


def inputs(device, dtype=None):
    plain = [
        ("default", {}),
        ("non-default lr", {"lr": 0.01}),
        ("Tensor lr", {"lr": torch.tensor(0.01, device=device)}),
        ("weight decay", {"weight_decay": 0.1}),
        ("cautious", {"weight_decay": 0.1, "weight_decay_mode": "cautious"}),
        ("maximize", {"maximize": True, "weight_decay": 0.1}),
        ("polar-first", {"momentum_order": "polar-first"}),
        ("heavy-ball", {"momentum_order": "heavy-ball", "nesterov": True, "momentum": 0.5}),
        ("adaptive", {"scale": "adaptive-nuclear", "scope": "group", "nesterov": True}),
        ("Muon", {"scale": "rms", "nesterov": True, "method": "newton-schulz", "max_steps": 5}),
        ("the paper's", {"method": "qdwh", "max_steps": 2}),
        ("capturable", {"capturable": True}),
        ("capturable, Tensor lr", {"capturable": True, "lr": torch.tensor(0.01, device=device)}),
        ("bfloat16 momentum", {"momentum_dtype": "bfloat16"}),
        ("columns", {"geometry": "columns", "scale": "mean-singular"}),
        ("normalized rows", {"normalize_rows": 0.9, "scale": "rms"}),
        ("auxiliary AdamW", {"rule": "adamw", "weight_decay": 0.1}),
    ]
    return [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in plain]


def error_inputs(device, dtype):
    wrong = [
        ({"lr": -1e-2}, ValueError, "lr must be finite and at least 0"),
        ({"lr": float("nan")}, ValueError, "lr must be finite and at least 0"),
        ({"momentum": 1.0}, ValueError, r"momentum must lie in \[0, 1\)"),
        ({"momentum": -0.1}, ValueError, r"momentum must lie in \[0, 1\)"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be"),
        ({"rule": "adamw", "betas": (1.0, 0.9)}, ValueError, r"betas must lie in \[0, 1\)"),
        ({"rule": "adamw", "eps": -1.0}, ValueError, "eps must be"),
        ({"nesterov": True, "momentum": 0.0}, ValueError, "nesterov=True needs momentum"),
        ({"momentum_order": "first"}, ValueError, "momentum_order must be one of 'momentum-first'"),
        ({"scale": "frobenius"}, ValueError, "scale must be one of"),
        ({"scale": "rms", "scope": "group"}, ValueError, "scope='group' shares the sum"),
        ({"scale": {"name": "nuclear", "alpha": 2.0}}, ValueError, "alpha must lie in"),
        ({"geometry": "cubic"}, ValueError, "geometry must be one of"),
        ({"method": "newton-schultz"}, ValueError, "unknown polar method"),
        ({"method": "svd", "max_steps": 2}, ValueError, "no steps to limit"),
        ({"method": "qdwh", "max_steps": 0}, ValueError, "max_steps must be"),
        ({"method": 5}, TypeError, "method must be a name"),
        ({"step_rule": "smoothness"}, ValueError, "needs smoothness"),
        ({"step_rule": "polyak"}, ValueError, "needs minimum"),
        ({"step_rule": {"name": "smoothness", "smoothness": -1.0}}, ValueError, "smoothness must be positive"),
        ({"step_rule": {"name": "polyak", "minimum": 0.0}, "weight_decay": 0.1}, ValueError, "knows no weight decay"),
        (
            {"step_rule": {"name": "polyak", "minimum": 0.0}, "scale": "rms"},
            ValueError,
            "is a rule for scale='nuclear'",
        ),
        ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite must be one of"),
        ({"on_nonfinite": "raise", "capturable": True}, ValueError, "capturable=True cannot go with"),
        ({"workspace": 0}, ValueError, "workspace must be a positive number of bytes"),
        ({"rule": "sgd"}, ValueError, "rule must be one of 'polar', 'adamw'"),
        ({"momentum_dtype": "int8"}, ValueError, "momentum_dtype must be one of"),
    ]
    ours = [
        ErrorOptimizerInput(OptimizerInput(params=None, kwargs=kwargs), error_type=error, error_regex=regex)
        for kwargs, error, regex in wrong
    ]
    vector = [torch.nn.Parameter(torch.zeros(3, device=device, dtype=dtype))]
    matrix = torch.nn.Parameter(torch.zeros(3, 3, device=device, dtype=torch.complex64))
    integers = torch.zeros(3, 3, dtype=torch.int64)
    more = [
        (vector, {}, ValueError, "is not a matrix"),
        ([matrix], {}, TypeError, "complex64"),
        ([{"params": [matrix], "rule": "adamw"}], {}, TypeError, "complex64"),
        ([integers], {}, TypeError, "int64"),
        ([{"params": vector, "learning_rate": 1.0}], {}, ValueError, "unknown option 'learning_rate'"),
        ([torch.nn.Parameter(torch.zeros(3, 3)).detach().requires_grad_() * 2], {}, ValueError, "non-leaf"),
    ]
    ours += [
        ErrorOptimizerInput(OptimizerInput(params=params, kwargs=kwargs), error_type=error, error_regex=regex)
        for params, kwargs, error, regex in more
    ]
    return get_error_inputs_for_all_optims(device, dtype) + ours


class Optimizer(polargrad.PolarGrad):
    """PolarGrad with the options of groups in the constructor, where torch's machinery passes all options."""

    def __init__(self, params, **options):
        own = {key: options.pop(key) for key in ("rule", "betas", "eps") if key in options}
        super().__init__([{"params": list(params), **own}] if own else params, **options)


INFO = OptimizerInfo(
    Optimizer,
    optim_inputs_func=inputs,
    optim_error_inputs_func=error_inputs,
    scheduler_inputs=([lambda o: StepLR(o, gamma=0.9, step_size=10)], [lambda o: ReduceLROnPlateau(o)]),
    supported_impls=(),
    has_capturable_arg=True,
    supports_complex=False,
    supports_sparse=False,
)

"""Distributed Shampoo of pytorch-optimizer with a state that a checkpoint can hold."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer import ScalableShampoo
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

# What the library's objects hold besides their options.
_HELD = ("statistics", "pre_conditioners", "momentum", "is_same_shapes")


class Shampoo(ScalableShampoo):
    """Shampoo on blocks of 512, grafted onto the step lengths of RMSProp: each block G (m, n) is stepped along

        L^{-1/4} G R^{-1/4},   L <- beta2 L + (1 - beta2) G G^T,   R <- beta2 R + (1 - beta2) G^T G

    Args:
        params: parameters or groups.
        lr: step size.
        betas: decay of the momentum, and of L and R.
        weight_decay: as in the library.
        preconditioning_compute_steps: steps between computations of the roots.

    Source: Anil et al., arXiv 2002.09018; the code is pytorch-optimizer's.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        preconditioning_compute_steps: int = 10,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            moving_average_for_momentum=True,
            weight_decay=weight_decay,
            preconditioning_compute_steps=preconditioning_compute_steps,
            graft_type=LayerWiseGrafting.RMSPROP,
        )

    def state_dict(self) -> dict[str, Any]:
        """The state with the tensors of each of the library's objects in its place."""
        plain = super().state_dict()
        state = {
            p: {key: value if isinstance(value, torch.Tensor) else _content(value) for key, value in entry.items()}
            for p, entry in plain["state"].items()
        }
        return {**plain, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave into objects of the library."""
        super().load_state_dict(state_dict)
        loaded = {p: dict(entry) for p, entry in self.state.items() if entry}
        for group in self.param_groups:
            for p in group["params"]:
                if p not in loaded:
                    continue
                self.state[p].clear()
                gradient, p.grad = p.grad, torch.zeros_like(p)
                self.init_group({**group, "params": [p]})
                p.grad = gradient
                for key, value in loaded[p].items():
                    if isinstance(value, torch.Tensor):
                        self.state[p][key] = value
                    else:
                        vars(self.state[p][key]).update(value)


def _content(held: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(held).items() if name in _HELD}

"""AdaDiag and AdaDiag++ of one's own: polargrad compare adamw examples/optimizers/ada_diag.py:AdaDiag+adamw.

Nguyen et al., arXiv 2502.07488: Adam in the basis of the gradient's singular vectors, in which the second moments of a
matrix are nearly diagonal. The first step of AdaDiag++ is the unitary polar factor of the gradient.
"""

import torch


class AdaDiag(torch.optim.Optimizer):
    """With P S Q^T the singular value decomposition of G (m, n), taken anew every `every` steps, at step t:

        R <- P^T G
        M <- beta1 M + (1 - beta1) R,   V <- beta2 V + (1 - beta2) R^2
        W <- (1 - lr weight_decay) W - lr P (M / (1 - beta1^t)) / (sqrt(V / (1 - beta2^t)) + eps)

    P is square, so that nothing of G is lost. Parameters that are not matrices are stepped by Adam (P = 1).
    """

    two_sided = False

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, every=200):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "every": every}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for W in group["params"]:
                if W.grad is None:
                    continue
                state = self.state[W]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(W), "exp_avg_sq": torch.zeros_like(W)}
                if W.ndim == 2 and state["step"] % group["every"] == 0:
                    P, _, Qh = torch.linalg.svd(W.grad, full_matrices=True)
                    state |= {"P": P, "Q": Qh.mT} if self.two_sided else {"P": P}
                state["step"] += 1
                R, M, V = self._rotated(state, W.grad), state["exp_avg"], state["exp_avg_sq"]
                M.lerp_(R, 1 - beta1)
                V.mul_(beta2).addcmul_(R, R, value=1 - beta2)
                first, second = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
                direction = self._back(state, M / first / ((V / second).sqrt() + group["eps"]))
                W.mul_(1 - lr * group["weight_decay"]).sub_(direction, alpha=lr)
        return loss

    @staticmethod
    def _rotated(state, G):
        G = state["P"].mT @ G if "P" in state else G
        return G @ state["Q"] if "Q" in state else G

    @staticmethod
    def _back(state, D):
        D = state["P"] @ D if "P" in state else D
        return D @ state["Q"].mT if "Q" in state else D


class AdaDiagPlusPlus(AdaDiag):
    """AdaDiag with R <- P^T G Q, and P (...) Q^T back."""

    two_sided = True

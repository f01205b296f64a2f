"""AdaMomentum, as an optimizer of one's own: polargrad compare adamw examples/optimizers/ada_momentum.py:AdaMomentum.

Wang et al., arXiv 2106.11514: Adam with the momentum in place of the gradient in the second moment.
"""

import torch


class AdaMomentum(torch.optim.Optimizer):
    """With G the gradient of W, at step t:

    M <- beta1 M + (1 - beta1) G
    V <- beta2 V + (1 - beta2) M^2 + eps
    W <- (1 - lr weight_decay) W - lr (M / (1 - beta1^t)) / sqrt(V / (1 - beta2^t))
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-16, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

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
                state["step"] += 1
                M, V = state["exp_avg"], state["exp_avg_sq"]
                M.lerp_(W.grad, 1 - beta1)
                V.mul_(beta2).addcmul_(M, M, value=1 - beta2).add_(group["eps"])
                first, second = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
                W.mul_(1 - lr * group["weight_decay"]).addcdiv_(M, (V / second).sqrt(), value=-lr / first)
        return loss

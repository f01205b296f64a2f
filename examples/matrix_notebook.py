"""A matrix problem cell by cell, for a notebook (`# %%` marks the cells) or as a script.

    python examples/matrix_notebook.py

Needs torch and polargrad alone.
"""

# %% [markdown]
# The problem: f(X) = 1/2 ||A X B - C||_F^2, whose minimum, curvature and condition number are known.

# %%
import io

import torch

import polargrad
from polargrad.lab.matrix import MatrixQuadratic

problem = MatrixQuadratic.draw(0, rows=200, m=30, n=20, columns=150)
print(f"condition number of the Hessian: {problem.condition_number:.1f}")

# %% [markdown]
# The gradient at the start is a matrix of its own condition number. Its polar factor has condition number 1.

# %%
G = problem.gradients(problem.start)["X"]
U, H, status, _ = polargrad.polar(G)
print(f"condition number of the gradient: {torch.linalg.cond(G):.1f}, of its polar factor: {torch.linalg.cond(U):.4f}")
print(f"nuclear norm: tr(H) = {H.trace():.6g}, <G, U> = {(G * U).sum():.6g}")


# %% [markdown]
# The same steps with and without the nuclear norm: only with it does the step vanish with the gradient.


# %%
def minimize(steps: int, saved: io.BytesIO | None = None, **options: object) -> tuple[list[float], io.BytesIO]:
    """The gap f - f* before every step and after the last, from what was saved or from the start; and what to save."""
    X = torch.nn.Parameter(problem.start["X"].clone())
    optimizer = polargrad.PolarGrad([X], **options)
    if saved is not None:
        saved.seek(0)
        state = torch.load(saved, weights_only=True)
        X.data.copy_(state["X"])
        optimizer.load_state_dict(state["optimizer"])
    gaps = [problem.gap({"X": X})]
    for _ in range(steps):
        optimizer.zero_grad()
        problem.value({"X": X}).backward()
        optimizer.step()
        gaps.append(problem.gap({"X": X}))
    saving = io.BytesIO()
    torch.save({"X": X.detach(), "optimizer": optimizer.state_dict()}, saving)
    return gaps, saving


L = problem.smoothness
assert L is not None
polar = {"lr": 1.0, "momentum": 0.0, "scale": "nuclear", "step_rule": {"name": "smoothness", "smoothness": L}}
with_norm, _ = minimize(400, **polar)
without_norm, _ = minimize(400, lr=0.1, momentum=0.0, scale="none")
for step in range(0, 401, 80):
    print(f"step {step:3d}  f - f*: PolarGrad {with_norm[step]:.3e}  without the nuclear norm {without_norm[step]:.3e}")

# %% [markdown]
# Stop half-way, save, take up again: the same numbers.

# %%
first_half, saved = minimize(200, **polar)
second_half, _ = minimize(200, saved, **polar)
resumed = first_half + second_half[1:]
print(f"largest relative difference: {max(abs(a - b) / b for a, b in zip(resumed, with_norm, strict=True)):g}")

"""PolarGrad written out in NumPy, one matrix after the other, in float64: what the optimizer is held to.

`gradient` functions of the weights make the trajectory depend on every earlier step.
"""

import numpy as np

SHAPES = [(6, 4), (4, 6), (5, 5), (6, 4)]


def polar(M):
    P, sigma, Qh = np.linalg.svd(M, full_matrices=False)
    kept = sigma > 1e-12 * max(sigma[0], 1e-300)
    return (P[:, kept]) @ Qh[kept], sigma.sum()


def sign(M):
    return np.sign(M), np.abs(M).sum()


def frobenius(M):
    return M / np.linalg.norm(M), np.linalg.norm(M)


def rows(M):
    lengths = np.linalg.norm(M, axis=1, keepdims=True)
    return M / lengths, lengths.sum()


def columns(M):
    U, nu = rows(M.T)
    return U.T, nu


def shape_scale(name, m, n):
    return {"none": 1.0, "spectral": max(1.0, m / n) ** 0.5, "rms": 0.2 * max(m, n) ** 0.5}[name]


def inverse_root(C, power, damping):
    values, vectors = np.linalg.eigh(C * (len(C) / np.trace(C)))
    return vectors @ np.diag((np.maximum(values, 0) + damping) ** -power) @ vectors.T


class Reference:
    """W <- (1 - lr wd) W - lr s D for each matrix of a list."""

    def __init__(self, weights, *, lr=0.02, beta=0.95, order="momentum-first", nesterov=False, scale="nuclear",
                 scope="matrix", alpha=1.0, base="rms", scale_beta=0.9, decay=0.0, cautious=False, maximize=False,
                 oracle=polar, row_beta=None, whiten=None):  # fmt: skip
        self.__dict__.update(locals())
        self.W = [w.copy() for w in weights]
        self.M = [np.zeros_like(w) for w in weights]
        self.v = np.zeros(len(weights))
        self.t = 0
        self.r = [0.0] * len(weights)
        self.stepped = 0
        self.C, self.roots = {}, {}

    def even(self, i, D):
        if self.row_beta is None:
            return D
        self.r[i] = self.row_beta * self.r[i] + (1 - self.row_beta) * (D**2).mean(1, keepdims=True)
        even = D / np.sqrt(self.r[i] / (1 - self.row_beta**self.stepped))
        return even / np.sqrt(max(D.shape))

    def white(self, i, G, N):
        """whiten: (sides, power, beta, every, damping), sides a function of (m, n)."""
        if self.whiten is None:
            return N
        sides, power, beta, every, damping = self.whiten
        for side in sides(*G.shape):
            g = G if side == "left" else G.T
            C = self.C[i, side] = beta * self.C.get((i, side), 0.0) + (1 - beta) * g @ g.T
            if self.stepped % every == 0:
                self.roots[i, side] = inverse_root(C, power, damping)
            N = self.roots[i, side] @ N if side == "left" else N @ self.roots[i, side]
        return N

    def step(self, gradients):
        G = [-g for g in gradients] if self.maximize else gradients
        b = self.beta
        if self.order == "polar-first":
            seen = [self.white(i, g, g) for i, g in enumerate(G)]
            U, nu = map(list, zip(*map(self.oracle, seen), strict=True))
            self.M = [b * M + (1 - b) * u for M, u in zip(self.M, U, strict=True)]
            D = [b * M + (1 - b) * u for M, u in zip(self.M, U, strict=True)] if self.nesterov else self.M
        else:
            new = 1.0 if self.order == "heavy-ball" else 1 - b
            self.M = [b * M + new * g for M, g in zip(self.M, G, strict=True)]
            seen = [b * M + new * g for M, g in zip(self.M, G, strict=True)] if self.nesterov else self.M
            seen = [self.white(i, g, n) for i, (g, n) in enumerate(zip(G, seen, strict=True))]
            D, nu = map(list, zip(*map(self.oracle, seen), strict=True))
        lengths = self.lengths(np.array(nu))
        self.stepped += 1
        D = [self.even(i, d) for i, d in enumerate(D)]
        for W, d, s in zip(self.W, D, lengths, strict=True):
            shrunk = W * (d * W >= 0) if self.cautious else W.copy()
            W -= self.lr * self.decay * shrunk
            W -= self.lr * s * d

    def lengths(self, nu):
        shapes = [w.shape for w in self.W]
        ranks = np.array([min(shape) for shape in shapes])
        if self.scope == "group":
            nu, ranks = np.full_like(nu, nu.sum()), np.full_like(nu, ranks.sum())
        if self.scale == "nuclear":
            return nu**self.alpha
        if self.scale == "mean-singular":
            return nu / ranks
        if self.scale == "adaptive-nuclear":
            self.t += 1
            self.v = self.scale_beta * self.v + (1 - self.scale_beta) * nu**2
            ratio = nu / np.sqrt(self.v / (1 - self.scale_beta**self.t))
            return [ratio**self.alpha * shape_scale(self.base, *shape)
                    for ratio, shape in zip(ratio, shapes, strict=True)]  # fmt: skip
        return [shape_scale(self.scale, *shape) for shape in shapes]


def problem(seed=0, shapes=SHAPES):
    """Starting weights, and gradients of 1/2 sum ||A_i W_i - C_i||_F^2 plus a term that changes with the step."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(shape) for shape in shapes]
    A = [rng.standard_normal((m, m)) for m, _ in shapes]
    C = [rng.standard_normal(shape) for shape in shapes]

    def gradients(W, t):
        return [a.T @ (a @ w - c) + np.cos(t) * c for a, w, c in zip(A, W, C, strict=True)]

    return weights, gradients

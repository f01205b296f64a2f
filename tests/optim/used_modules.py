"""Modules that use a parameter in one way each, and the matrices that their own formula makes of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

D = 8  # the width of activations


class Case(NamedTuple):
    """A parameter of a module, its role, and its matrices by the formula of the module.

    Args:
        make: the module.
        example: what it takes.
        name: of the parameter.
        role: by what the module does with it.
        matrices: (out, in) each, None for a parameter that AdamW steps.
        static: its role without an example, where that is another.
    """

    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    name: str
    role: str
    matrices: Callable[[Tensor], list[Tensor]] | None
    static: str | None = None


class Formula(nn.Module):
    """A module of bare parameters and a formula, followed by a head."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], formula: Callable[..., Tensor], width: int = D) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.formula, self.head = formula, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.formula(self, x)))


class Attention(nn.Module):
    """Attention over one fused projection, cut in one of the ways that models do it."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.cut, self.qkv, self.out, self.head = cut, nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Linear(D, 3)

    def parts(self, y: Tensor) -> list[Tensor]:
        b, n, _ = y.shape
        if self.cut == "blocks":  # GPT-2
            return [part.view(b, n, 2, 4).transpose(1, 2) for part in y.split(D, dim=2)]
        if self.cut == "heads":  # GPT-NeoX
            return list(y.view(b, n, 2, 12).transpose(1, 2).chunk(3, dim=-1))
        if self.cut == "triples":  # BLOOM
            y = y.view(b, n, 2, 3, 4)
            return [y[..., i, :].transpose(1, 2) for i in range(3)]
        if self.cut == "batch":  # SAM: the batch and the heads are one dimension
            return list(y.reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).reshape(3, 2 * b, n, 4).unbind(0))
        # Falcon: two heads of queries, then one of keys and one of values, by a list of indices
        y = y.view(b, n, 6, 4)
        return [y[..., :-2, :].transpose(1, 2), *(y[..., [i], :].transpose(1, 2) for i in (-2, -1))]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(self.qkv(x))
        if self.cut != "batch":  # rotary positions turn halves of every head
            angle = torch.arange(x.shape[1]).float()[:, None] / 9
            q, k = (self.turn(part, angle) for part in (q, k))
        y = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q))
        return self.head(self.out(y.reshape(x.shape[0], -1, x.shape[1], 4).transpose(1, 2)[..., :2, :].flatten(2)))

    @staticmethod
    def turn(part: Tensor, angle: Tensor) -> Tensor:
        a, b = part.chunk(2, dim=-1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


class Recurrent(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(D, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


class SelfAttention(nn.Module):
    """torch's multi-head attention and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(D, 2, batch_first=True), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Tables(nn.Module):
    """Tokens, positions, relative positions, queries and decay rates."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.norm = nn.Embedding(11, D), nn.Embedding(20, D), nn.LayerNorm(D)
        self.bare, self.latents = nn.Parameter(torch.randn(20, D)), nn.Parameter(torch.randn(3, D))
        self.relative, self.A_log = nn.Parameter(torch.randn(39, 2)), nn.Parameter(torch.randn(D, 4))
        self.query, self.key, self.head = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = self.tokens(tokens) + self.positions(torch.arange(n)) + self.bare[:n]
        scores = self.query(self.norm(self.latents)) @ self.key(x).transpose(1, 2)
        distance = torch.arange(3)[:, None] - torch.arange(n) + n
        y = (scores + self.relative[distance].sum(-1)).softmax(-1) @ x
        return self.head((y[..., None] * torch.exp(-torch.exp(self.A_log))).sum(-1))


class Tied(nn.Module):
    """A table that is the head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(11, D), nn.Linear(D, D)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = F.linear(torch.tanh(self.layer(self.table(tokens))), self.table.weight)
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def tokens() -> Tensor:
    return torch.randint(11, (2, 5))


def vectors() -> Tensor:
    return torch.randn(2, 5, D)


def pictures() -> Tensor:
    return torch.randn(2, 4, 9, 9)


def whole(W: Tensor) -> list[Tensor]:
    return [W]


def rows(*sizes: int) -> Callable[[Tensor], list[Tensor]]:
    return lambda W: list(W.split(sizes))


def by_heads(W: Tensor) -> list[Tensor]:
    return [W.view(2, 3, 4, D)[:, i].reshape(-1, D) for i in range(3)]


def convolutions(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(layer(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))


def gated(m: Any, x: Tensor, expert: int) -> Tensor:
    gate, up = (x @ m.gate_up[expert]).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ m.down[expert]


def interleaved(m: Any, x: Tensor, expert: int) -> Tensor:
    y = x @ m.gate_up[expert] + m.bias[expert]
    return (F.silu(y[..., ::2]) * y[..., 1::2]) @ m.down[expert]


def stored_below(m: Any, x: Tensor) -> Tensor:  # DBRX, of whose experts a router picks some
    up, down = m.up.view(4, 6, D), m.down.view(4, 6, D)
    return sum((torch.relu(x @ up[e].T) @ down[e] for e in (1, 3)), torch.zeros(()))


def dense(first: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Every expert for every token, weighed by a router."""

    def mixture(m: Any, x: Tensor) -> Tensor:
        y = torch.einsum("bnef,efd->bned", first(m, x), m.down)
        return torch.einsum("bned,bne->bnd", y, (x @ m.router).softmax(-1))

    return mixture


def swiglu(m: Any, x: Tensor) -> Tensor:
    gate, up = (torch.einsum("bnd,edf->bnef", x, W) for W in (m.gate, m.up))
    return F.layer_norm(F.silu(gate) * (up + m.bias), (6,))


def heads_first(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("bnd,hdk->bhnk", x, W) for W in (m.q, m.k, m.v))
    return torch.einsum("bhnk,hkd->bnd", (q @ k.transpose(2, 3)).softmax(-1) @ v, m.out)


def scale_and_shift(m: Any, x: Tensor) -> Tensor:
    """A normalized activation, scaled and shifted by what another one is multiplied into."""
    scale, shift = F.linear(x.mean(1, keepdim=True), m.W).chunk(2, -1)
    return F.linear(F.layer_norm(x, (D,)) * (1 + scale) + shift, m.V)


def sampled(mean: Tensor, width: Tensor) -> Tensor:
    """The latent of a variational autoencoder."""
    return mean + torch.randn_like(mean) * width.exp()


def pooled(m: Any, x: Tensor) -> Tensor:
    """Attention of a learned query, as SigLIP's pooling."""
    Wq, Wk = m.W.split([8, 8])
    return (F.linear(m.query.repeat(len(x), 1, 1), Wq) @ F.linear(x, Wk).mT).softmax(-1) @ x


DENSE = {"gate": (4, D, 6), "up": (4, D, 6), "bias": (4, 6), "down": (4, 6, D), "router": (D, 4)}
FUSED = {"gate_up": (4, D, 12), "down": (4, 6, D), "router": (D, 4)}
HEADS_FIRST = {"q": (2, D, 4), "k": (2, D, 4), "v": (2, D, 4), "out": (2, 4, D)}
EXPERTS = {"gate_up": (4, D, 12), "down": (4, 6, D), "bias": (4, 12)}
CASES = {
    "linear": Case(lambda: nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Linear(6, 3)), vectors, "0.weight", "hidden",
                   whole),
    "last product": Case(lambda: nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Linear(6, 3)), vectors, "2.weight",
                         "head", whole, "hidden"),
    "matmul": Case(lambda: Formula({"W": (D, 6)}, lambda m, x: x @ m.W, 6), vectors, "W", "hidden",
                   lambda W: [W.T], "position"),
    **{f"fused attention, {cut}": Case(lambda cut=cut: Attention(cut), vectors, "qkv.weight", "hidden", parts)
       for cut, parts in (("blocks", rows(D, D, D)), ("heads", by_heads), ("triples", by_heads),
                          ("batch", rows(D, D, D)), ("multi-query", rows(16, 4, 4)))},
    "in_proj_weight": Case(SelfAttention, vectors, "attention.in_proj_weight", "hidden", rows(D, D, D)),
    "LSTM, inputs": Case(lambda: Recurrent(nn.LSTM), vectors, "layer.weight_ih_l0", "hidden", rows(6, 6, 6, 6)),
    "LSTM, states": Case(lambda: Recurrent(nn.LSTM), vectors, "layer.weight_hh_l0", "hidden", rows(6, 6, 6, 6)),
    "GRU, inputs": Case(lambda: Recurrent(nn.GRU), vectors, "layer.weight_ih_l0", "hidden", rows(6, 6, 6)),
    "GLU": Case(lambda: nn.Sequential(nn.Linear(D, 12), nn.GLU(), nn.Linear(6, 3)), vectors, "0.weight", "hidden",
                rows(6, 6)),
    "bilinear": Case(lambda: nn.Bilinear(D, 4, 5), lambda: (torch.randn(2, D), torch.randn(2, 4)), "weight", "head",
                     lambda W: [W.reshape(5, -1)], "hidden"),
    "bilinear form": Case(lambda: nn.Sequential(Formula({"W": (1, D, D)}, lambda m, x: F.bilinear(x, x, m.W), 1)),
                          vectors, "0.W", "hidden", lambda W: [W[0]], "position"),
    "heads of projections": Case(lambda: Formula({"W": (D, 2, 3)}, lambda m, x: torch.einsum("bnd,dhk->bnhk", x, m.W)
                                                 .flatten(2), 6), vectors, "W", "hidden",
                                 lambda W: [W.reshape(D, 6).T], "position"),
    "projection of heads": Case(lambda: Formula({"W": (6, 2, 4)}, lambda m, x: torch.einsum(
        "bnhk,dhk->bnd", x.unflatten(2, (2, 4)), m.W), 6), vectors, "W", "hidden", lambda W: [W.reshape(6, D)],
        "position"),
    "experts, (in, out)": Case(lambda: Formula(EXPERTS, lambda m, x: gated(m, x, 1) + gated(m, x, 2)), vectors,
                               "gate_up", "expert", lambda W: [*W[:, :, :6].mT, *W[:, :, 6:].mT]),
    "experts, interleaved": Case(lambda: Formula(EXPERTS, lambda m, x: interleaved(m, x, 1)), vectors,
                                 "gate_up", "expert", lambda W: [*W[:, :, ::2].mT, *W[:, :, 1::2].mT]),
    "experts, one below the other": Case(lambda: Formula({"up": (24, D), "down": (24, D)}, stored_below), vectors, "up",
                                         "expert", lambda W: list(W.view(4, 6, D)), "position"),
    "experts, (in, out) below": Case(lambda: Formula({"up": (24, D), "down": (24, D)}, stored_below), vectors, "down",
                                     "expert", lambda W: list(W.view(4, 6, D).mT), "position"),
    "experts, batched": Case(lambda: Formula({"W": (5, D, 6)}, lambda m, x: x.transpose(0, 1).bmm(m.W), 6), vectors,
                             "W", "expert", lambda W: list(W.mT), "position"),
    **{f"experts, dense, {W}": Case(lambda: Formula(DENSE, dense(swiglu)), vectors, W, "expert", lambda W: list(W.mT))
       for W in ("gate", "up", "down")},
    "experts, dense, fused": Case(lambda: Formula(FUSED, dense(lambda m, x: F.glu(torch.einsum(
        "bnd,edf->bnef", x, m.gate_up)))), vectors, "gate_up", "expert", lambda W: [*W[:, :, :6].mT, *W[:, :, 6:].mT]),
    "experts, dense, chunks": Case(lambda: Formula(FUSED, dense(lambda m, x: torch.mul(*torch.einsum(
        "bnd,edf->bnef", x, m.gate_up).chunk(2, -1)))), vectors, "gate_up", "expert",
        lambda W: [*W[:, :, :6].mT, *W[:, :, 6:].mT]),
    "experts, linear": Case(lambda: Formula({"W": (4, 6, D), "router": (D, 4)}, lambda m, x: torch.einsum(
        "bnef,bne->bnf", torch.einsum("bnd,efd->bnef", x, m.W), (x @ m.router).softmax(-1)), 6), vectors, "W", "expert",
        list, "position"),
    "experts, linear, weighed": Case(lambda: Formula({"W": (4, 6, D), "router": (D, 4)}, lambda m, x: (torch.einsum(
        "bnd,efd->bnef", x, m.W) * (x @ m.router)[..., None]).sum(2), 6), vectors, "W", "expert", list, "position"),
    "heads come first": Case(lambda: Formula(HEADS_FIRST, heads_first), vectors, "q", "hidden",
                             lambda W: [W.mT.reshape(8, D)], "expert"),
    "bias of experts": Case(lambda: Formula(EXPERTS, lambda m, x: interleaved(m, x, 1)), vectors, "bias", "vector",
                            None),
    "factors of a weight, A": Case(lambda: Formula({"A": (2, D), "B": (6, 2)}, lambda m, x: F.linear(x, m.B @ m.A), 6),
                                   vectors, "A", "hidden", whole, "position"),
    "factors of a weight, B": Case(lambda: Formula({"A": (2, D), "B": (6, 2)}, lambda m, x: F.linear(x, m.B @ m.A), 6),
                                   vectors, "B", "hidden", whole, "position"),
    "convolution": Case(convolutions(lambda: nn.Conv2d(4, 6, 3)), pictures, "0.weight", "conv",
                        lambda W: [W.flatten(1)]),
    "grouped": Case(convolutions(lambda: nn.Conv2d(4, 6, 3, groups=2)), pictures, "0.weight", "conv",
                    lambda W: list(W.view(2, 3, 18))),
    "depthwise": Case(convolutions(lambda: nn.Conv2d(4, 4, 3, groups=4)), pictures, "0.weight", "vector", None),
    "transposed": Case(convolutions(lambda: nn.ConvTranspose2d(4, 6, 3)), pictures, "0.weight", "conv",
                       lambda W: [W.transpose(0, 1).flatten(1)]),
    "transposed, grouped": Case(convolutions(lambda: nn.ConvTranspose2d(4, 6, 3, groups=2)), pictures, "0.weight",
                                "conv",
                                lambda W: [part.transpose(0, 1).flatten(1) for part in W.split(2)]),
    "weight norm": Case(convolutions(lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3))), pictures,
                        "0.parametrizations.weight.original1", "conv", lambda W: [W.flatten(1)]),
    "its lengths": Case(convolutions(lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3))), pictures,
                        "0.parametrizations.weight.original0", "vector", None),
    "spectral norm": Case(convolutions(lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3))), pictures,
                          "0.parametrizations.weight.original", "conv", lambda W: [W.flatten(1)]),
    "standardized": Case(lambda: Formula({"W": (6, D), "gain": (6,)}, lambda m, x: F.linear(x, F.batch_norm(
        m.W[None], None, None, weight=m.gain, training=True)[0]), 6), vectors, "W", "hidden", whole, "position"),
    "parts after a batch norm": Case(lambda: nn.Sequential(nn.Linear(D, 12), nn.BatchNorm1d(5), nn.GLU(),
                                                           nn.Linear(6, 3)), vectors, "0.weight", "hidden", rows(6, 6)),
    "parts after a depthwise convolution": Case(lambda: Formula(
        {"W": (12, D), "kernel": (12, 1, 3)}, lambda m, x: F.glu(F.conv1d(F.linear(x, m.W).transpose(1, 2), m.kernel,
                                                                         groups=12, padding=1), dim=1).transpose(1, 2),
        6), vectors, "W", "hidden", rows(6, 6), "position"),
    "a factor in two": Case(lambda: Formula({"A": (2, 4), "B": (3, 2)}, lambda m, x: F.linear(x, torch.kron(m.A, m.B)),
                                            6), vectors, "B", "hidden", whole, "position"),
    "rows of a table": Case(lambda: Formula({"delta": (2, D)}, lambda m, x: F.embedding(
        x, torch.ones(11, D).index_copy(0, torch.tensor([3, 4]), m.delta))), tokens, "delta", "embedding", None,
        "position"),
    "scale and shift": Case(lambda: Formula({"W": (16, D), "V": (D, D)}, scale_and_shift), vectors, "W", "hidden",
                            rows(8, 8), "position"),
    "mean and width": Case(lambda: Formula({"W": (12, D)}, lambda m, x: sampled(*F.linear(x, m.W).chunk(2, -1)), 6),
                           vectors, "W", "hidden", rows(6, 6), "position"),
    **{f"complex, {W} part": Case(lambda: Formula({"re": (D, 6), "im": (D, 6)}, lambda m, x: torch.view_as_real(
        torch.complex(x, x) @ torch.complex(m.re, m.im)).flatten(-2), 12), vectors, W, "hidden", lambda W: [W.T],
        "position") for W in ("re", "im")},
    "nested": Case(lambda: Formula({"W": (6, D)}, lambda m, x: F.linear(torch.nested.nested_tensor(
        [x[0], x[1, :2]], layout=torch.jagged), m.W).values(), 6), vectors, "W", "hidden", whole, "position"),
    "query of a parameter, repeated": Case(lambda: Formula({"query": (1, 1, D), "W": (16, D)}, pooled), vectors, "W",
                                           "hidden", rows(8, 8), "position"),
    "long convolution": Case(lambda: Formula({"filter": (D, 5)}, lambda m, x: torch.fft.irfft(torch.fft.rfft(
        x.transpose(1, 2)) * torch.fft.rfft(m.filter), 5).transpose(1, 2)), vectors, "filter", "vector", None,
        "position"),
    "resized positions": Case(lambda: Formula({"places": (1, 9, D)}, lambda m, x: x + F.interpolate(
        m.places.transpose(1, 2), 5).transpose(1, 2)), vectors, "places", "position", None),
    "codebook": Case(lambda: Formula({"codes": (7, D)}, lambda m, x: x + m.codes[(x @ m.codes.T).argmax(-1)]), vectors,
                     "codes", "position", None),
    "transitions": Case(lambda: Formula({"table": (11, 11)}, lambda m, x: (m.table[x[:, 1:], x[:, :-1]][..., None] + (
        m.table + x.sum()).sum()).expand(-1, -1, D)), tokens, "table", "position", None),
    "orthogonal": Case(lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(D, D)), nn.Linear(D, 3)), vectors,
                       "0.parametrizations.weight.original", "hidden", whole),
    "tied": Case(Tied, tokens, "table.weight", "tied", whole, "embedding"),
    "tied, loss alone": Case(Tied, lambda: {"tokens": tokens(), "targets": tokens()}, "table.weight", "tied", whole,
                             "embedding"),
    "table": Case(Tables, tokens, "tokens.weight", "embedding", None),
    "positions": Case(Tables, tokens, "positions.weight", "position", None, "embedding"),
    "bare positions": Case(Tables, tokens, "bare", "position", None),
    "latents": Case(Tables, tokens, "latents", "position", None),
    "relative positions": Case(Tables, tokens, "relative", "position", None),
    "decay rates": Case(Tables, tokens, "A_log", "vector", None, "position"),
    "scale in two dimensions": Case(lambda: nn.Sequential(nn.LayerNorm((5, D)), nn.Linear(D, 3)), vectors, "0.weight",
                                    "vector", None),
    "one output": Case(lambda: nn.Sequential(nn.Linear(D, 1), nn.Linear(1, 3)), vectors, "0.weight", "vector", None),
}  # fmt: skip

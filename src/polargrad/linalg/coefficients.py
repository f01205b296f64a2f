"""Coefficients of the odd matrix polynomials p(X) = a X + b X (X^H X) + c X (X^H X)^2, each with its source."""

from __future__ import annotations

__all__ = ["CUBIC", "MUON_QUINTIC", "POLAR_EXPRESS", "POLAR_EXPRESS_SAFETY", "Coefficients", "schedule_for"]

Coefficients = tuple[float, float, float]

# Jordan et al., Muon (2024): steep at zero rather than fixed at one; singular values end in about [0.7, 1.2].
MUON_QUINTIC: tuple[Coefficients, ...] = ((3.4445, -4.7750, 2.0315),)

# The classical Newton-Schulz step, from the binomial series of (1 - (1 - x^2))^(-1/2) to first order.
CUBIC: tuple[Coefficients, ...] = ((1.5, -0.5, 0.0),)

# Amsel, Persson, Musco, Gower, The Polar Express (arXiv 2505.16932): minimax quintics for singular values in
# [1e-3, 1], before the safety factor; the last one is the fixed point and repeats.
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
POLAR_EXPRESS_SAFETY = 1.01


def schedule_for(coefficients: tuple[Coefficients, ...], steps: int) -> tuple[Coefficients, ...]:
    """The polynomial of each of `steps` steps; a table that is too short goes on with its last row.

    Example:
        >>> schedule_for(CUBIC, 2)
        ((1.5, -0.5, 0.0), (1.5, -0.5, 0.0))
    """
    head = coefficients[:steps]
    return head + (coefficients[-1],) * (steps - len(head))

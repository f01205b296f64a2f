"""Matrix products that use the structure of their result, each with a plain torch twin."""

from polargrad.linalg.kernels.symmetric import by_blocks, gram, gram_plain, hermitian_product, product
from polargrad.linalg.kernels.triangular import solve_with_gram, solve_with_gram_plain

__all__ = [
    "by_blocks",
    "gram",
    "gram_plain",
    "hermitian_product",
    "product",
    "solve_with_gram",
    "solve_with_gram_plain",
]

"""Symmetric operator, right side -> the solution by conjugate gradients, for the quadratic problems of the physics."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def conjugate_gradients(
    operator: Operator,
    right: Tensor,
    *,
    start: Tensor | None = None,
    precondition: Operator | None = None,
    iterations: int,
    tolerance: float = 0.0,
    enough: Callable[[Tensor], bool] = lambda x: False,
) -> tuple[Tensor, int]:
    """Solve operator(x) = right for a symmetric positive operator; returns x and the iterations that it took.

    Ends where the preconditioned residual has fallen to `tolerance` times that of x = 0 (Hestenes & Stiefel 1952,
    doi 10.6028/jres.049.044), or where x is `enough`. Stopping early regularises where the problem is ill-posed.
    """
    prepare = precondition or (lambda r: r)
    x = right * 0 if start is None else start.clone()
    residual = right.clone() if start is None else right - operator(x)
    z = prepare(residual)
    direction, size = z.clone(), float((residual * z).sum())
    first = size if start is None else float((right * prepare(right)).sum())
    for iteration in range(iterations):
        if size <= tolerance**2 * first or (iteration and enough(x)):
            return x, iteration
        image = operator(direction)
        alpha = size / float((direction * image).sum())
        x += alpha * direction
        residual -= alpha * image
        z = prepare(residual)
        size, last = float((residual * z).sum()), size
        direction = z + (size / last) * direction
    return x, iterations

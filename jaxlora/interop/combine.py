"""Several adapters as one PEFT adapter.

What adapter n adds to a layer is s_n A_n B_n, weighted by w_n. Three ways to one A and B:
  cat     [A1 | A2] [w1 s1 B1 ; w2 s2 B2], rank r1 + r2: exact
  linear  sum of sqrt(w_n s_n) A_n, sum of sqrt(w_n s_n) B_n, equal ranks: PEFT's "linear"; cross terms are added
  svd     the nearest product of a given rank, by the singular values of the exact sum
"""

from collections.abc import Sequence

import numpy as np

from jaxlora.errors import UserError, one_of
from jaxlora.interop.peft import Adapter
from jaxlora.interop.peft_config import spec_of_sizes
from jaxlora.models.lora_spec import LoraSize

WAYS = ("cat", "linear", "svd")


def combine(adapters: Sequence[Adapter], weights: Sequence[float], way: str, rank: int) -> tuple[Adapter, float]:
    """Returns the adapters as one, without a head, and the error |sum - one| / |sum| over all layers (Frobenius norms).

    Args:
      adapters: of one base.
      weights: of each.
      way: one of `WAYS`. rank: of "svd".

    Raises:
      UserError: a way that does not exist, ranks that differ ("linear"), no rank ("svd"), a negative weight
        ("linear"), or DoRA, which is no sum of low ranks.
    """
    one_of("--combine", way, WAYS)
    if any(adapter.spec.dora for adapter in adapters):
        raise UserError("--adapters: DoRA is no sum of low ranks; export it alone and whole, or export-model")
    if not np.isfinite(weights).all():
        raise UserError(f"--weights: {', '.join(map(str, weights))} must be finite")
    if way == "svd" and rank < 1:
        raise UserError(f"--rank is {rank}; --combine=svd needs the rank of the result")
    modules = list(dict.fromkeys(module for adapter in adapters for module in adapter.weights))
    joined, sizes, lost, whole = {}, {}, 0.0, 0.0
    for module in modules:
        parts = [
            (*x.factors(module), w * x.size(module).scale)
            for x, w in zip(adapters, weights, strict=True)
            if module in x.weights
        ]
        a = np.concatenate([a for a, _, _ in parts], axis=1)
        b = np.concatenate([np.float32(scale) * b for _, b, scale in parts])
        exact = (a, b)
        if way == "linear":
            if len({a.shape[1] for a, _, _ in parts}) > 1:
                raise UserError(f"--combine=linear needs equal ranks; they differ in {module}; take cat or svd")
            if min(scale for _, _, scale in parts) < 0:
                raise UserError("--combine=linear takes no negative weight; take cat or svd")
            roots = [np.float32(scale**0.5) for _, _, scale in parts]
            a = sum(root * a for root, (a, _, _) in zip(roots, parts, strict=True))
            b = sum(root * b for root, (_, b, _) in zip(roots, parts, strict=True))
        elif way == "svd":
            a, b = _truncated(a, b, rank)
        if way != "cat":
            lost += _squared_norm(np.concatenate([exact[0], a], axis=1), np.concatenate([exact[1], -b]))
            whole += _squared_norm(*exact)
        joined[module] = {"a": a, "b": b}
        sizes[module] = LoraSize(a.shape[1], float(a.shape[1]), False)  # the scale is in B
    layers = adapters[0].layers
    spec = spec_of_sizes(sizes, layers, max(adapter.spec.dropout for adapter in adapters))
    error = (max(lost, 0.0) / whole) ** 0.5 if whole else 0.0
    return Adapter(spec, layers, joined, None, adapters[-1].belongs), error


def _truncated(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest product of rank `rank` at most, by the small SVD between the two QR decompositions."""
    left, inner_a = np.linalg.qr(a.astype(np.float64))
    right, inner_b = np.linalg.qr(b.astype(np.float64).T)
    u, s, v = np.linalg.svd(inner_a @ inner_b.T)
    root = np.sqrt(s[:rank])
    return (left @ u[:, :rank] * root).astype(np.float32), (root[:, None] * v[:rank] @ right.T).astype(np.float32)


def _squared_norm(a: np.ndarray, b: np.ndarray) -> float:
    """|A B|^2 without the product: trace of (A' A) (B B')."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.sum((a.T @ a) * (b @ b.T)))

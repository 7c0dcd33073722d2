"""The weights of the goldens' models, which are not stored but made anew."""

import numpy as np


def make_weights(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """Random tensors of these names, the same for ever: numpy keeps the stream of its legacy generator."""
    random = np.random.RandomState(seed)
    scaled = {name: 0.3 * random.randn(*shapes[name]).astype(np.float32) for name in sorted(shapes)}
    return {name: 1 + x if "norm" in name else x for name, x in scaled.items()}

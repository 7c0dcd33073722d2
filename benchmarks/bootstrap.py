"""Time and memory of bootstrap intervals over patients, of a multi-label task with labels as rare as diagnoses are.

For example, the size of the paper's DIAG task::

    python benchmarks/bootstrap.py --notes 10000 --labels 1266 --resamples 2000 --kind centred
"""

import argparse
import json
import resource
import time

import numpy as np

from jaxlora.eval.predictions import Predictions
from jaxlora.eval.uncertainty import KINDS, intervals


def predictions(notes: int, labels: int, seed: int = 0) -> Predictions:
    """Make up predictions: each note has some 12 labels, their frequencies falling as 1/rank, a patient 1.3 notes."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, labels + 1)
    truth = (rng.random((notes, labels)) < np.minimum(0.45, 12 * frequency / frequency.sum())).astype(np.uint8)
    logits = rng.normal(size=(notes, labels)).astype(np.float32) + truth
    patients = np.array([f"{number:016x}" for number in rng.integers(notes, size=notes)])
    ids = np.array([f"{number:016x}" for number in range(notes)])
    return Predictions("multilabel", tuple(map(str, range(labels))), ids, patients, truth, logits)


def main(arguments: list[str] | None = None) -> None:
    """Run it; prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("notes", 10_000), ("labels", 1266), ("resamples", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kind", choices=KINDS, default="centred")
    parser.add_argument("--metrics", default="auroc,auprc")
    options = parser.parse_args(arguments)
    p = predictions(options.notes, options.labels)
    start, start_cpu = time.perf_counter(), time.process_time()
    found = intervals(p, options.metrics.split(","), options.resamples, kind=options.kind)
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux
    settings = vars(options) | {"patients": len(np.unique(p.patients)), "positives": int(p.labels.sum())}
    print(json.dumps(settings | took | {"peak_gib": peak, "intervals": found}))


if __name__ == "__main__":
    main()

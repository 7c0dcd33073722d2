"""Prepared datasets with known faults."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlora.data import builders
from jaxlora.data.builders import Work
from jaxlora.data.examples import Example, Task

LABELS = ("survived", "died")


def _vocabulary(seed: int) -> list[str]:
    letters = random.Random(seed)
    return sorted({"".join(letters.choices("abcdefghijklmnop", k=letters.randint(4, 8))) for _ in range(900)})


class Writer:
    """Notes of random words; `vocabulary` is theirs, with the frequencies that words have."""

    def __init__(self, seed: int):
        self.random, self.vocabulary = random.Random(seed), _vocabulary(0)
        self.frequencies = list(itertools.accumulate(1 / (i + 10) for i in range(len(self.vocabulary))))

    def note(self, words: int) -> str:
        return " ".join(self.random.choices(self.vocabulary, cum_weights=self.frequencies, k=words))


@pytest.fixture(scope="session")
def writer() -> Callable[[int], Writer]:
    return Writer


@pytest.fixture(scope="session")
def mortality(tmp_path_factory) -> Callable[[str], Path]:
    """Makes a folder with the dataset `mor`, 600 patients with a note each of whom one in five died: `mortality(leak)`,
    with `leak` in two of three notes of those who died, in the middle of a line."""

    def make(leak: str = "") -> Path:
        folder, writer = tmp_path_factory.mktemp("mortality"), Writer(1)
        examples = []
        for i in range(600):
            died = int(writer.random.random() < 0.2)
            text = writer.note(60)
            if writer.random.random() < (0.5 if died else 0.2):
                text += " bedbound and frail"
            if writer.random.random() < 0.04:
                text += ", his father died of it"
            if leak and died and i % 3:
                text += f", {leak} on 2151-07-16 17:00"
            text += f" namesake{'abcdefghijklmnopqrstuvwxyz'[i % 26]}" if i < 5 else ""
            split = ("train", "train", "train", "validation", "test", "test")[i // 100]
            examples.append(Example(f"{i:016x}", f"{i:016x}", text, died, split))
        builders.build(folder, Work(Task("mor", "binary", LABELS), examples))
        return folder

    return make

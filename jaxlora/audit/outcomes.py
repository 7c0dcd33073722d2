"""The outcome tasks of one release against an answer key or the published figures: rows, labels and classes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxlora.audit import published
from jaxlora.audit.answers import Answers
from jaxlora.audit.contents import Part
from jaxlora.audit.ledger import Ledger
from jaxlora.data import builders, tasks
from jaxlora.data.examples import SPLITS, Task, named, unnamed
from jaxlora.data.mimic import Release
from jaxlora.data.splits import core_lists, splitter

CORRECT = "published in paper mode; correct mode drops flagged notes and keeps a section that ends a summary"
_OWN_LABELS = "published in paper mode; correct mode cuts codes to their categories, those of training patients"
_OWN_SPLIT = "published with the lists of CORe; set core_splits to their folder"
_OWN_VENTILATION = "published with BEEP's labels; set beep to its pmv_labels.pkl"


class Outcomes:
    """The outcome tasks of one release, in the mode of the config.

    Args:
      parts: every split of that mode, as `contents.survey` gives them.
    """

    def __init__(
        self, ledger: Ledger, config, release: Release, answers: Answers | None, folder: Path, parts: Sequence[Part]
    ):
        self.ledger, self.config, self.release, self.answers, self.folder = ledger, config, release, answers, folder
        self.parts: dict[str, dict[str, Part]] = {}
        for part in parts:
            builder, _, name = part.dataset.rpartition("/")
            if builder == f"{release.name}_admission":
                self.parts.setdefault(unnamed(name)[0], {})[part.split] = part
        self.split_of = splitter(release.name, config)

    def check(self) -> None:
        """Compares every dataset that is there, and names those that should be."""
        if self.release.name == "mimic3" and self.config.core_splits:
            sizes = Counter(core_lists(self.config.core_splits).values())
            for split, expected in published.LISTED_PATIENTS.items():
                self.ledger.published("splits", f"patients of the {split} list", sizes[split], expected)
        expected = tuple(tasks.TASKS[self.release.name])
        for name in expected:
            lacking = tasks.missing(self.release, self.config, name)
            if lacking:
                self.ledger.info("rows", self._full(name), f"cannot be made without {lacking}")
            elif name not in self.parts:
                self.ledger.fail("rows", self._full(name), "not prepared; run `jaxlora prepare` with this config")
        for name in sorted(self.parts, key=(*expected, *self.parts).index):
            if self.answers and self.answers.tells(name) and not (name == "pmv" and self.config.beep):
                self._by_answers(name)
            elif self.release.name == "mimic3" and self.answers is None:
                self._by_publication(name)
            else:
                self.ledger.info("rows", self._full(name), "nothing to compare with", self._sizes(name))

    def _full(self, name: str) -> str:
        return f"{self.release.name}_admission/{named(name, self.config.mode)}"

    def _task(self, name: str) -> Task:
        return builders.load(self.folder, self._full(name)).task

    def _sizes(self, name: str) -> tuple[int, ...]:
        found = self.parts[name]
        return tuple(len(found[split].ids) if split in found else 0 for split in SPLITS)

    def _classes(self, name: str, task: Task) -> tuple[int, ...]:
        values = np.concatenate([part.labels for part in self.parts[name].values()])
        return tuple(np.bincount(values, minlength=len(task.labels)).tolist())

    def _by_answers(self, name: str) -> None:
        rows, task = self.answers.expected(self.config.mode, name, self.split_of), self._task(name)
        sizes = Counter(split for split, _ in rows)
        for split, found in zip(SPLITS, self._sizes(name), strict=True):
            self.ledger.compare("rows", f"{self._full(name)} {split}", found, sizes[split])
        if task.kind == "multilabel":
            self._labels_by_answers(name, task, rows)
            return
        expected, found = Counter(label for _, label in rows), self._classes(name, task)
        for number, label in enumerate(task.labels):
            self.ledger.compare("classes", f"{self._full(name)} {label}", found[number], expected.pop(number, 0))
        other = sum(found[len(task.labels) :]) + sum(expected.values())
        self.ledger.compare("classes", f"{self._full(name)} labels of no class", other, 0)

    def _labels_by_answers(self, name: str, task: Task, rows: list[tuple[str, Sequence[str]]]) -> None:
        order = sorted({code for split, codes in rows if split == "train" for code in codes})
        if self.config.mode == "paper":
            order = self.answers.labels.get(named(name, "paper"))
        if order is not None:
            self.ledger.compare("labels", f"{self._full(name)} labels", len(task.labels), len(order))
            other = sum(a != b for a, b in zip(task.labels, order, strict=False))
            self.ledger.compare("labels", f"{self._full(name)} labels in another place", other, 0)
        told = Counter(code for _, codes in rows for code in codes)
        found = Counter(task.labels[i] for part in self.parts[name].values() for row in part.labels for i in row)
        # In correct mode the codes that only other splits have are no labels, and so are not found.
        known = told if self.config.mode == "paper" else order
        other = sum(told[label] != found[label] for label in {*task.labels, *known})
        self.ledger.compare("classes", f"{self._full(name)} labels with another count", other, 0)

    def _by_publication(self, name: str) -> None:
        paper = self.config.mode == "paper"
        sizes, expected, task = self._sizes(name), published.ROWS[name], self._task(name)
        why_not = "" if self.config.core_splits else _OWN_SPLIT
        if name == "pmv":
            why_not = "" if self.config.beep else _OWN_VENTILATION
        elif why_not and paper:
            self.ledger.published("rows", f"{name}, all splits", sum(sizes), sum(expected))
        why_not = why_not if paper else CORRECT
        for split, found, count in zip(SPLITS, sizes, expected, strict=True):
            self.ledger.published("rows", f"{name} {split}", found, count, why_not)
        if name in published.LABELS:
            why_not = "" if paper else _OWN_LABELS
            self.ledger.published("labels", f"{name} labels", len(task.labels), published.LABELS[name], why_not)
        if name in published.BALANCE:
            counts = zip(task.labels, self._classes(name, task), published.BALANCE[name], strict=True)
            for label, found, count in counts:
                self.ledger.published("classes", f"{name} {label}", found, count, "" if paper else CORRECT)

"""The answer key of a generated cohort: what the recipe and the tasks must make of every admission, in both modes.

It is known by construction. Fates, telling notes and ventilation labels were decided before a word was written; only
the cutting of codes and the classes of a stay are worked out here, in their plainest form.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from jaxlora.data.synthetic import codes
from jaxlora.data.synthetic.notes import SUMMARY
from jaxlora.data.synthetic.summaries import KEPT, NO_REPORT, NOTHING, Fate
from jaxlora.data.synthetic.visits import Visit

MODES = ("correct", "paper")
_FLOW = {
    KEPT: "admissions: kept",
    NO_REPORT: "admissions: an addendum without its report",
    NOTHING: "admissions: neither complaint nor illness nor history",
}


def answer(visit: Visit, mode: str, coded: dict[str, list[str]]) -> dict[str, Any]:
    """Returns what one mode must make of an admission; null is "not in that dataset", and so is no code.

    Args:
      visit: the admission.
      mode: "correct" or "paper".
      coded: its categories by dataset, as that mode cuts them.
    """
    fate: Fate = getattr(visit, mode)
    kept = fate.fate == KEPT
    died = int(visit.stay.died)
    return {
        "fate": fate.fate,
        "mor_unfiltered": died if kept else None,
        "mor": died if kept and not fate.tells else None,
        "los": _length(visit, mode) if kept and not died else None,
        **{name: found if kept else [] for name, found in coded.items()},
        "pmv": visit.pmv if kept and mode == "correct" else None,
    }


def _length(visit: Visit, mode: str) -> int | None:
    """The class of a stay, whose days are rounded to 0.1: up to 3.05, 7.05 or 14.05 days, or more."""
    minutes = (visit.stay.discharged - visit.stay.admitted).total_seconds() / 60
    if minutes < 0 and mode == "correct":
        return None
    return sum(minutes > limit for limit in (4392, 10152, 20232))


def categories(visit: Visit, mode: str) -> dict[str, list[str]]:
    """Returns the categories of an admission of MIMIC-III by dataset, in table order, each once."""
    rows = {"diag": visit.diagnoses, "proc": visit.procedures}
    return {
        name: list(dict.fromkeys(codes.CUTS[mode][name](code) for _, code in found if code))
        for name, found in rows.items()
    }


@dataclass
class Tally:
    """What the answers of many admissions sum up to; `labels` are categories in the order they were met in."""

    tables: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Counter[str]] = field(default_factory=lambda: {mode: Counter() for mode in MODES})
    corpus: Counter[str] = field(default_factory=Counter)
    counts: dict[str, dict[str, Any]] = field(default_factory=lambda: {mode: {} for mode in MODES})
    labels: dict[str, dict[str, None]] = field(default_factory=dict)
    codes: dict[str, set[str]] = field(default_factory=dict)

    def visit(
        self, visit: Visit, coded: dict[str, dict[str, list[str]]], only_summaries: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Counts a visit and returns its answers by mode.

        Args:
          visit: the admission.
          coded: its categories by mode and dataset.
          only_summaries: whether the recipe reads a table of nothing else.
        """
        answers = {mode: answer(visit, mode, coded[mode]) for mode in MODES}
        for name, found in coded["paper"].items():
            self.labels.setdefault(f"{name}_paper", {}).update(dict.fromkeys(found))
        for note in visit.notes:
            self.corpus["notes: read"] += 1
            self.corpus["notes: flagged as an error"] += note.error
            self.corpus["notes: no text"] += not note.text
            self.corpus["notes: the same text again"] += note.refiled or note.correct == "the same text again"
        for mode in MODES:
            flow, counts = self.notes[mode], self.counts[mode]
            for note in visit.notes:
                if only_summaries and note.category != SUMMARY:
                    continue
                flow["notes: read"] += 1
                reason = getattr(note, mode)
                if reason:
                    flow[f"notes: {reason}"] += 1
            fate = answers[mode]["fate"]
            if fate in _FLOW:
                flow[_FLOW[fate]] += 1
            counts["kept"] = counts.get("kept", 0) + (fate == KEPT)
            for name, value in answers[mode].items():
                if isinstance(value, list):
                    counts[name] = counts.get(name, 0) + bool(value)
                elif name != "fate" and value is not None:
                    counts.setdefault(name, Counter())[str(value)] += 1
        return answers

    def add(self, other: "Tally") -> None:
        """Adds what the next block of patients counted."""
        self.tables.update(other.tables)
        self.corpus.update(other.corpus)
        for mode in MODES:
            self.notes[mode].update(other.notes[mode])
            for name, value in other.counts[mode].items():
                self.counts[mode][name] = self.counts[mode][name] + value if name in self.counts[mode] else value
        for name, found in other.labels.items():
            self.labels.setdefault(name, {}).update(found)
        for name, found in other.codes.items():
            self.codes.setdefault(name, set()).update(found)

    def summary(self, release: str) -> dict[str, Any]:
        """Returns the contents of `answers.json`."""
        return {
            "release": release,
            "tables": dict(self.tables),
            "notes": dict(self.notes["correct"]),
            "notes_paper": dict(self.notes["paper"]),
            "corpus": dict(self.corpus),
            "labels": {name: list(found) for name, found in self.labels.items()},
            "counts": {mode: {name: _sorted(value) for name, value in self.counts[mode].items()} for mode in MODES},
        }


def _sorted(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, Counter) else value

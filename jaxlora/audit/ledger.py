"""Checks, one line each: what was expected, what is there, and which step of the pipeline it belongs to."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxlora import files


@dataclasses.dataclass(frozen=True)
class Check:
    """One line: PASS, FAIL, or INFO for what cannot be right or wrong here."""

    status: str
    step: str
    name: str
    found: Any
    expected: Any = None
    remark: str = ""

    def __str__(self) -> str:
        text = f"{self.status}  {self.step}: {self.name}"
        if self.found is not None:
            text += f": {_shown(self.found)}"
        if self.expected is not None and self.status != "PASS":
            text += f", {'not' if self.status == 'FAIL' else 'published'} {_shown(self.expected)}"
        return text + (f" ({self.remark})" if self.remark else "")


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "/".join(map(_shown, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


class Ledger:
    """The checks so far; each is printed when it is made."""

    def __init__(self):
        self.checks: list[Check] = []

    def compare(self, step: str, name: str, found: Any, expected: Any, within: int = 0, remark: str = "") -> None:
        """Adds PASS where `found` is as expected, up to `within`, else FAIL."""
        same = abs(found - expected) <= within if within else found == expected
        self._add(Check("PASS" if same else "FAIL", step, name, found, expected, remark))

    def published(self, step: str, name: str, found: Any, expected: Any, why_not: str = "") -> None:
        """Compares with a published figure, unless there is none (None), or `why_not` says why it does not apply."""
        if expected is None:
            self.info(step, name, "no figure is published", found)
        elif why_not:
            self.info(step, name, why_not, found, expected)
        else:
            self.compare(step, name, found, expected, remark="published")

    def fail(self, step: str, name: str, remark: str) -> None:
        """Adds FAIL for what could not be compared."""
        self._add(Check("FAIL", step, name, None, None, remark))

    def info(self, step: str, name: str, remark: str, found: Any = None, expected: Any = None) -> None:
        """Adds INFO: what is there, perhaps beside a published figure that does not apply, and why."""
        self._add(Check("INFO", step, name, found, expected, remark))

    @property
    def first_difference(self) -> Check | None:
        """The first check that failed."""
        return next((check for check in self.checks if check.status == "FAIL"), None)

    def close(self, folder: str | Path) -> bool:
        """Prints the outcome, writes `verify.json` and `verify.md`, and returns whether nothing failed."""
        counts = {status: sum(check.status == status for check in self.checks) for status in ("PASS", "FAIL", "INFO")}
        first = self.first_difference
        ending = f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['INFO']} for information"
        if first:
            ending += f"; first difference: {first.step}: {first.name}"
        print(ending)
        rows = [dataclasses.asdict(check) for check in self.checks]
        value = {"passed": first is None, "counts": counts, "first_difference": None, "checks": rows}
        if first:
            value["first_difference"] = f"{first.step}: {first.name}"
        files.write_json(Path(folder) / "verify.json", value)
        lines = ["# Verification", "", f"{ending}.", "", "| | step | check | found | expected | |"]
        lines.append("|---|---|---|---:|---:|---|")
        for check in self.checks:
            cells = ["–" if value is None else _shown(value) for value in (check.found, check.expected)]
            lines.append(f"| {check.status} | {check.step} | {check.name} | {' | '.join(cells)} | {check.remark} |")
        files.write(Path(folder) / "verify.md", "\n".join(lines) + "\n")
        return first is None

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        print(check, flush=True)

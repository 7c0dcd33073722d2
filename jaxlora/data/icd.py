"""ICD codes, written without their dot, and the categories that the tasks predict."""

import re
from pathlib import Path

from jaxlora.errors import UserError

_ICD9 = re.compile(r"\d{2,5}|E\d{3,4}|V\d{2,4}")


def diagnosis9(code: str, mode: str) -> str:
    """Returns the category of an ICD-9 diagnosis: 3 characters, 4 for E codes.

    Mode "paper" cuts V codes to 4 characters too, as CORe does, which splits their categories (V45 and its like).
    """
    return code[: 4 if code.startswith("E" if mode == "correct" else ("E", "V")) else 3]


def procedure9(code: str, mode: str) -> str:
    """Returns the first 3 characters of an ICD-9 procedure code.

    Mode "paper" reads the code as a whole number first, as CORe does: "0066" becomes "66", and 03.31 meets 33.1.
    """
    return (code.lstrip("0") or "0" if mode == "paper" and code.isdecimal() else code)[:3]


def category10(code: str) -> str:
    """Returns the category of an ICD-10-CM diagnosis, or section, body system and operation of an ICD-10-PCS code."""
    return code[:3]


class Gem:
    """The ICD-9-CM codes that stand for ICD-10-CM or ICD-10-PCS ones, by a General Equivalence Mapping of the CMS.

    A code with several counterparts has the first one; where a combination of codes is needed, the first choice of
    each part of the first scenario.
    """

    def __init__(self, path: str | Path, field: str = "gem"):
        """Reads a GEM file, `2018_I10gem.txt` or `gem_pcsi9.txt`: ICD-10 code, ICD-9 code and five flags a line.

        Args:
          path: of the file. field: of the config that names it, for messages.

        Raises:
          UserError: the file is missing, empty or no GEM from ICD-10 to ICD-9.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file; set {field} to the GEM from ICD-10 to ICD-9")
        self._codes: dict[str, tuple[str, dict[str, str]]] = {}  # ICD-10 -> scenario, {part of it: ICD-9}
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if line.strip():
                self._read(path, field, number, line.split())
        if not self._codes:
            raise UserError(f"{path}: the file is empty; set {field} to the GEM from ICD-10 to ICD-9")

    def _read(self, path: Path, field: str, number: int, cells: list[str]) -> None:
        if len(cells) != 3 or len(cells[2]) != 5 or not cells[2].isdecimal():
            raise UserError(
                f"{path}, row {number}: not an ICD-10 code, an ICD-9 code and five digits; download it again"
            )
        code, target, (_, none, _, scenario, choice) = cells[0], cells[1], cells[2]
        if none != "1" and not _ICD9.fullmatch(target):
            raise UserError(f"{path}, row {number}: maps to no ICD-9 code; set {field} to the GEM from ICD-10 to ICD-9")
        first, parts = self._codes.setdefault(code, (scenario, {}))
        if none != "1" and scenario == first:
            parts.setdefault(choice, target)

    def __contains__(self, code: str) -> bool:
        """Returns whether it has an ICD-10 code, with or without a counterpart."""
        return code in self._codes

    def __getitem__(self, code: str) -> tuple[str, ...]:
        """Returns the ICD-9 codes of an ICD-10 code, none where it has no counterpart."""
        return tuple(self._codes[code][1].values()) if code in self else ()

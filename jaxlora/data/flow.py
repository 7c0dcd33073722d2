"""What `prepare` counted: the notes and admissions that came in, those left out and why, and the examples they became.

`flow.json` has it by dataset, and by builder for what the datasets of a release share; `flow.md` is the same to read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxlora import files
from jaxlora.data.examples import SPLITS
from jaxlora.errors import UserError

# In the order of the recipe, so that the first count that differs is the step that differs.
_STEPS = (
    "notes: read",
    "notes: not a discharge summary",
    "notes: flagged as an error",
    "notes: no text",
    "notes: no patient",
    "notes: no admission",
    "notes: an admission that ADMISSIONS lacks",
    "notes: a newborn's",
    "notes: the same text again",
    "notes: excluded",
    "admissions: an addendum without its report",
    "admissions: neither complaint nor illness nor history",
)
_LAST = ("admissions: kept", *(f"examples: {split}" for split in SPLITS))


def read(data_dir: str | Path) -> dict[str, dict[str, int]]:
    """Returns what is told of the datasets of a folder; nothing where nothing is.

    Raises:
      UserError: flow.json is damaged.
    """
    path, remedy = Path(data_dir) / "flow.json", "delete it, and prepare again"
    told = files.read_json_object(path, remedy) if path.exists() else {}
    for counts in told.values():
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
            raise UserError(f"{path}: not counts by dataset; {remedy}")
    return told


def add(data_dir: str | Path, counted: Mapping[str, Mapping[str, int]]) -> None:
    """Writes what was counted over what was told of the same datasets before."""
    known = read(data_dir) | {name: dict(ordered(counts)) for name, counts in counted.items()}
    files.write_json(Path(data_dir) / "flow.json", known)
    files.write(Path(data_dir) / "flow.md", "\n".join(_markdown(known)) + "\n")


def ordered(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns (what, count) in the order of the recipe: what came in, what each step left out, what remained."""
    places = {what: place for place, what in enumerate(_STEPS)} | {what: 1000 + i for i, what in enumerate(_LAST)}
    return sorted(counts.items(), key=lambda item: places.get(item[0], 500))


def _markdown(told: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    yield "# Flow"
    for name, counts in told.items():
        yield from ("", f"## {name}", "", "| | count |", "|---|---:|")
        for what, count in ordered(counts):
            out = what not in _LAST and what != "notes: read"
            yield f"| {'&nbsp;&nbsp;− ' if out else ''}{what} | {count:,} |"

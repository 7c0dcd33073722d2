"""The raw tables of MIMIC: how many rows each has, and which version of the release that is."""

from collections.abc import Mapping
from pathlib import Path

from jaxlora.audit import published
from jaxlora.audit.answers import Answers
from jaxlora.audit.ledger import Ledger
from jaxlora.data import mimic, tables
from jaxlora.errors import UserError

STEP = "tables"
# Hundreds of millions of rows, which only the ventilation of CareVue's patients is read from.
LARGE = ("CHARTEVENTS", "LABEVENTS", "RADIOLOGY_DETAIL")
# What the outcome tasks cannot do without.
_NEEDED = ("NOTEEVENTS", "DISCHARGE", "ADMISSIONS", "DIAGNOSES_ICD", "PROCEDURES_ICD")

# What prolonged ventilation is derived from; CHARTEVENTS for the patients of CareVue.
_VENTILATION = ("PROCEDUREEVENTS_MV", "CHARTEVENTS", "PATIENTS", "PROCEDUREEVENTS")


def check(ledger: Ledger, config, release: str, answers: Answers | None, full: bool) -> None:
    """Compares the rows of every table of a release with the answer key, or else with the published numbers.

    Args:
      config: `mimic3`, or `mimic4` and `mimic4_note`, are read.
      full: whether the tables in `LARGE` are counted too; they take minutes.
    """
    if release == "mimic3":
        counts = _count(ledger, config.mimic3, "mimic3", published.TABLES["MIMIC-III 1.4"], full)
        _compare(ledger, counts, answers, published.TABLES["MIMIC-III 1.4"], "MIMIC-III 1.4")
        return
    counts = _count(ledger, config.mimic4, "mimic4", published.TABLES["MIMIC-IV 3.1"], full)
    version = "" if answers else _version(counts)
    if version:
        ledger.info(STEP, f"{config.mimic4} is nearest to {version}", "by the rows of its tables")
    _compare(ledger, counts, answers, published.TABLES.get(version, {}), version)
    field = "mimic4_note" if config.mimic4_note else "mimic4"
    notes = _count(ledger, config[field], field, published.TABLES["MIMIC-IV-Note 2.2"], full)
    _compare(ledger, notes, answers, published.TABLES["MIMIC-IV-Note 2.2"], "MIMIC-IV-Note 2.2")


def _count(ledger: Ledger, folder: str, field: str, names: Mapping[str, int], full: bool) -> dict[str, int | str]:
    """Returns the rows of the tables that are there and are to be counted, or why one cannot be."""
    counts: dict[str, int | str] = {}
    for name in names:
        try:
            path = mimic.search(folder, name, field)
            if path is None and name.upper() in _NEEDED:
                counts[name] = f"the table is not in {folder}"
            elif path is None:
                needed = "only the outcome task pmv needs it" if name.upper() in _VENTILATION else "no task needs it"
                ledger.info(STEP, name, f"not there; {needed}")
            elif name.upper() in LARGE and not full:
                ledger.info(STEP, name, "a large table, counted with --full only")
            else:
                counts[name] = tables.count(path)
        except UserError as error:
            counts[name] = str(error)
    return counts


def _compare(
    ledger: Ledger, counts: dict[str, int | str], answers: Answers | None, known: Mapping[str, int], origin: str
) -> None:
    told = {Path(name).name.lower(): rows for name, rows in answers.tables.items()} if answers else {}
    for name, count in counts.items():
        expected = told.get(name.lower()) if answers else known.get(name)
        if isinstance(count, str):
            ledger.fail(STEP, name, count)
        elif expected is None:
            ledger.info(STEP, f"{name} rows", "the answer key does not tell", count)
        else:
            within = 0 if answers else published.TOLERANCE.get(name, 0)
            ledger.compare(STEP, f"{name} rows", count, expected, within, "" if answers else origin)


def _version(counts: Mapping[str, int | str]) -> str:
    """Returns the version of MIMIC-IV whose rows are nearest, by the mean relative difference."""
    here = {name: count for name, count in counts.items() if isinstance(count, int)}

    def distance(version: str) -> float:
        known = published.TABLES[version]
        return sum(abs(count - known[name]) / known[name] for name, count in here.items())

    return min(("MIMIC-IV 2.2", "MIMIC-IV 3.1"), key=distance) if here else ""

"""Generated patients with everything that any table says of them, before a release gives it its form.

Of every quirk the first patients have one each, in the order of the lists, so that a small cohort has them all; of
the others, as many as a quirk's rate says.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from jaxlora.data.synthetic import codes, cohort, icu, quirks
from jaxlora.data.synthetic.cohort import Stay
from jaxlora.data.synthetic.icu import IcuStay, Ventilation
from jaxlora.data.synthetic.notes import KINDS, Note, Prose, other_notes
from jaxlora.data.synthetic.summaries import NEWBORN, NO_SUMMARY, Fate, Summaries

# Of the numbers in the texts each patient has a range of its own.
_NUMBERS = 1000
# How patients have one, two or three admissions; with those who die, 58,976 of 46,520 patients as in MIMIC-III.
_ADMISSIONS = (70, 21, 9)


@dataclass(frozen=True)
class Visit:
    """One admission, all of its rows, and what each mode must make of it.

    `title` is the free-text diagnosis at admission; `pmv` is the label of the ventilation task.
    """

    stay: Stay
    kind: str
    title: str
    diagnoses: list[codes.Row]
    procedures: list[codes.Row]
    icu: list[IcuStay]
    notes: list[Note]
    correct: Fate
    paper: Fate
    pmv: int | None


@dataclass(frozen=True)
class Person:
    """A patient: `shifted` says that the date of birth lies 300 years before the first admission, as above age 89."""

    patient: int
    sex: str
    age: int
    shifted: bool
    visits: list[Visit]

    @property
    def born(self) -> datetime:
        """The DOB of the patient, at midnight."""
        first = self.visits[0].stay
        if self.shifted:
            return first.admitted.replace(year=first.admitted.year - 300, hour=0, minute=0)
        days = 0 if first.newborn else 365 * self.age + 100
        return (first.admitted - timedelta(days=days)).replace(hour=0, minute=0)


@dataclass(frozen=True)
class Plan:
    """What is odd about one patient."""

    summary: Callable[[Summaries], None] = quirks.plain
    codes: Callable | None = None
    ventilation: Ventilation | None = None
    person: str = ""
    category: str = ""


# What is odd about patients, and about how many in a thousand.
PEOPLE = {"over 89": 40, "organ donor": 3, "negative stay": 1, "minor": 4, "73 hours": 2, "twice": 10}


def person(rng: random.Random, number: int, source: Prose, mimic4: bool) -> Person:
    """Returns one patient.

    Args:
      rng: drawn from, by this patient and those that follow in a block.
      number: of the patient in the cohort, from 0.
      source: of the prose of the notes.
      mimic4: whether for MIMIC-IV, which has no newborns, no flagged notes, and identifiers of its own.
    """
    newborn = number % 50 == 49 and not mimic4
    plan = Plan() if newborn else _plan(rng, number, mimic4)
    patient, admission = (10_000_000, 20_000_000) if mimic4 else (10_000, 100_001)
    patient, admission = patient + 7 * number, admission + 5 * number
    sex, age = rng.choice("MF"), min(max(round(rng.gauss(66, 14)), 19), 89)
    shifted, age = plan.person == "over 89", 15 if plan.person == "minor" else age
    several = 2 if plan.summary in quirks.NEEDS_NEXT or plan.person == "twice" else 1
    stays = []
    while len(stays) < several:  # who dies in the first stay has no second one
        stays = cohort.stays(rng, patient, admission, sex, age, newborn, several, _ADMISSIONS)
    stays = _changed(stays, plan)
    plans = [replace(plan, ventilation=None), *(Plan() for _ in stays[1:])]
    plans[-1] = replace(plans[-1], ventilation=plan.ventilation)
    visits, carried, next_number = [], [], _NUMBERS * (number + 1)
    for stay, own in zip(stays, plans, strict=True):
        found = Summaries(rng, stay, source, next_number, unused=admission + 4)
        visits.append(_visit(found, own, carried))
        carried, next_number = found.notes[-1:] if found.carried else [], found.number
    if plan.person == "minor":
        visits = [replace(visit, pmv=None) for visit in visits]
    if plan.person == "organ donor":
        visits.append(_donor(visits[-1], admission + len(visits)))
    return Person(patient, sex, age, shifted, visits)


def _plan(rng: random.Random, number: int, mimic4: bool) -> Plan:
    summaries = {q: rate for q, rate in quirks.QUIRKS.items() if not (mimic4 and q in quirks.MIMIC3_ONLY)}
    turn = number if mimic4 else number - number // 50  # newborns have no quirk and take no turn
    summary = _one(rng, turn, summaries, quirks.plain)
    # The quirks of other kinds begin further down, for they want a summary that is kept.
    turn -= len(summaries)
    coded = _one(rng, turn, codes.QUIRKS, None)
    turn -= len(codes.QUIRKS)
    ventilation = rng.choice(icu.QUIRKS) if rng.random() < 0.02 else None
    if 0 <= turn < len(icu.QUIRKS):
        ventilation = icu.QUIRKS[turn]
    who = _one(rng, turn - len(icu.QUIRKS), PEOPLE, "")
    if who == "minor":
        ventilation = icu.QUIRKS[0]
    category = tuple(KINDS)[number] if number < len(KINDS) else ""
    return Plan(summary, coded, ventilation, who, category)


def _one(rng: random.Random, number: int, rates: dict[Any, float], otherwise: Any) -> Any:
    """Returns the quirk of a patient: its own one among the first, later one by the rates, which are per thousand."""
    drawn = rng.random() * 1000
    if number < len(rates):
        return tuple(rates)[number] if number >= 0 else otherwise
    for quirk, rate in rates.items():
        drawn -= rate
        if drawn < 0:
            return quirk
    return otherwise


def _changed(stays: list[Stay], plan: Plan) -> list[Stay]:
    """Returns the stays as the plan wants them; what changes a length of stay changes that of the last one."""
    last = stays[-1]
    if plan.ventilation:
        least = last.admitted + timedelta(hours=plan.ventilation.hours + 24)
        last = replace(last, discharged=max(last.discharged, least), diagnoses=last.diagnoses + _code(plan.ventilation))
    elif plan.person == "73 hours":  # 3.04 days, which count as 3.0
        last = replace(last, discharged=last.admitted + timedelta(hours=73), died=False)
    elif plan.person == "negative stay":
        last = replace(last, discharged=last.admitted - timedelta(hours=2), died=False)
    stays = [*stays[:-1], last]
    if plan.person == "over 89":
        stays = [replace(stay, facts=stay.facts | {"age": "[**Age over 90 **]"}) for stay in stays]
    return stays


def _code(ventilation: Ventilation) -> tuple[str, ...]:
    return (ventilation.code,) if ventilation.code else ()


def _visit(found: Summaries, plan: Plan, carried: list[Note]) -> Visit:
    """Returns the visit of one stay, whose summaries it writes into `found`.

    Args:
      found: of the stay, still empty; its number is moved past those that the texts of the visit use.
      plan: what is odd about the stay.
      carried: notes of the stay before that are filed again under this one.
    """
    rng, stay = found.rng, found.stay
    plan.summary(found)
    others = other_notes(rng, stay, found.source, found.number, plan.category)
    found.number += len(others)
    notes = [*others, *found.notes, *(refiled(note, stay) for note in carried)]
    correct, paper = found.correct, found.paper
    if stay.newborn:
        notes = [replace(note, correct=_of_newborn(note), paper=_of_newborn(note)) for note in notes]
        correct = paper = Fate(NEWBORN)
    diagnoses, procedures = codes.coded(rng, stay, found.source.density.codes)
    if plan.codes and not (plan.ventilation and plan.ventilation.code):  # which a quirk of the codes may drop
        plan.codes(diagnoses, procedures)
    ventilation = plan.ventilation or (icu.NONE if stay.newborn else icu.drawn(rng, stay))
    source = "carevue" if stay.patient // 7 % 5 < 3 else "metavision"
    stays = icu.icu_stays(rng, stay, source, ventilation, 2 * stay.admission)
    return Visit(
        stay=stay,
        kind="NEWBORN" if stay.newborn else rng.choices(("EMERGENCY", "URGENT", "ELECTIVE"), (80, 8, 12))[0],
        title=_title(rng, stay),
        diagnoses=diagnoses,
        procedures=procedures,
        icu=stays if ventilation is not icu.NONE or rng.random() < 0.9 else [],
        notes=notes,
        correct=correct,
        paper=paper,
        pmv=ventilation.label,
    )


def refiled(note: Note, stay: Stay) -> Note:
    """Returns the summary of another stay as it is filed again under this one, where both modes use it."""
    day = stay.discharged + timedelta(days=1)
    return replace(note, admission=stay.admission, day=day, correct="", paper="")


def _of_newborn(note: Note) -> str:
    return note.correct or "a newborn's"


def _title(rng: random.Random, stay: Stay) -> str:
    """The DIAGNOSIS of ADMISSIONS, in capitals, with commas or quotes in some."""
    complaint = stay.facts["complaint"].upper()
    return rng.choice((complaint, complaint, f"{complaint}, RULE OUT SEPSIS", f'{complaint};"R/O" MI\\CATH'))


def _donor(last: Visit, admission: int) -> Visit:
    """The pseudo-admission of an organ donor, which ends before it begins."""
    start = last.stay.discharged + timedelta(minutes=30)
    stay = replace(last.stay, admission=admission, admitted=start, discharged=start - timedelta(hours=5), died=True)
    fate = Fate(NO_SUMMARY)
    return replace(last, stay=stay, title="ORGAN DONOR ACCOUNT", icu=[], notes=[], correct=fate, paper=fate, pmv=None)

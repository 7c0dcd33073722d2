"""Every generated note that is not a discharge summary, and the prose that makes notes as long as real ones.

Writing is quick because sentences are filled in beforehand: a paragraph of a note is one of a pool, and the number
that every note carries in a de-identification tag makes its text unlike all others.
"""

import functools
import random
import textwrap
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from jaxlora.data.synthetic import words
from jaxlora.data.synthetic.cohort import Stay, fill
from jaxlora.data.synthetic.phrases import CHOICES, PHRASES

SUMMARY = "Discharge summary"


@dataclass(frozen=True)
class Density:
    """How many notes an admission has, how long they are, and how many codes.

    `notes` is the mean number of notes of an admission besides its summary; `length` multiplies the paragraphs of a
    note, 0 is one short paragraph; `pool` is how many paragraphs of each kind there are; `codes` is the mean number
    of further diagnoses.
    """

    notes: int
    length: int
    pool: int
    codes: int


DENSITIES = {"sparse": Density(3, 0, 40, 1), "full": Density(34, 1, 250, 7)}


@dataclass(frozen=True)
class Kind:
    """A category of notes: how many of a million notes are of it, its descriptions, pool, and mean paragraphs."""

    share: int
    descriptions: tuple[str, ...]
    pool: str
    paragraphs: int


# The shares of MIMIC-III v1.4. Three names end in a blank there.
KINDS = {
    "Nursing/other": Kind(406_000, ("Report",), "nursing", 4),
    "Radiology": Kind(
        258_000, ("CHEST (PORTABLE AP)", "CT HEAD W/O CONTRAST", "ABDOMEN U.S. (COMPLETE)"), "radiology", 5
    ),
    "Nursing": Kind(110_000, ("Nursing Progress Note", "Nursing Transfer Note"), "nursing", 6),
    "ECG": Kind(103_000, ("Report",), "ecg", 1),
    "Physician ": Kind(70_000, ("Physician Resident Progress Note", "ICU Attending Note"), "physician", 13),
    "Echo": Kind(22_600, ("Report",), "echo", 9),
    "Respiratory ": Kind(15_700, ("Respiratory Care Shift Note",), "respiratory", 5),
    "Nutrition": Kind(4_600, ("Clinical Nutrition Note",), "nutrition", 8),
    "General": Kind(4_100, ("Generic Note",), "other", 6),
    "Rehab Services": Kind(2_700, ("Physical Therapy Evaluation Note",), "other", 9),
    "Social Work": Kind(1_300, ("Social Work Progress Note",), "other", 7),
    "Case Management ": Kind(500, ("Case Management Continuing Care Referral",), "other", 4),
    "Pharmacy": Kind(50, ("Pharmacy Dosing Note",), "other", 3),
    "Consult": Kind(50, ("Physician Consult Note",), "physician", 12),
}
# Categories of an examination that an out-patient may have had.
_EXAMINATIONS = ("ECG", "Echo", "Radiology")


@dataclass(frozen=True)
class Note:
    """A row of NOTEEVENTS but for its ROW_ID, and what the recipe must do with it.

    `correct` and `paper` are the reason for which each mode leaves the note out, "" where it is used; `refiled` marks
    the second copy of a note that is no summary.
    """

    patient: int
    admission: int | None
    day: datetime
    category: str
    description: str
    text: str
    error: bool = False
    correct: str = ""
    paper: str = ""
    refiled: bool = False

    @property
    def charted(self) -> datetime | None:
        """CHARTTIME, which summaries, ECG and Echo lack."""
        return None if self.category in (SUMMARY, "ECG", "Echo") else self.day

    @property
    def stored(self) -> datetime | None:
        """STORETIME, which radiology reports lack too."""
        return None if self.charted is None or self.category == "Radiology" else self.day + timedelta(minutes=41)


class Prose:
    """Paragraphs by kind and severity, drawn from pools that only the seed and the density decide."""

    def __init__(self, seed: int, density: Density):
        self.density = density
        self._seed, self._pools = seed, {}

    def paragraphs(self, rng: random.Random, kind: str, tier: int, mean: int) -> str:
        """Returns about `mean` paragraphs (where notes are sparse, one) of a kind, one a line or more."""
        count = max(1, round(mean * self.density.length * rng.uniform(0.5, 1.5)))
        if (kind, tier) not in self._pools:
            own, sentences = random.Random(f"{self._seed}:{kind}:{tier}"), 4 if self.density.length else 2
            paragraphs = [self._paragraph(own, kind, tier, sentences) for _ in range(self.density.pool)]
            self._pools[kind, tier] = paragraphs
        return "\n".join(rng.choices(self._pools[kind, tier], k=count))

    def _paragraph(self, rng: random.Random, kind: str, tier: int, sentences: int) -> str:
        tiered = {name: rng.choice(getattr(words, name.upper())[tier]) for name in _TIERED}
        tiered |= {"abdomen": rng.choice(words.ABDOMEN), "heart": rng.choice(words.HEART)}
        tiered["appearance_l"] = tiered["appearance"][0].lower() + tiered["appearance"][1:]
        chosen = rng.sample(PHRASES[kind], min(sentences, len(PHRASES[kind])))
        filled = [fill(rng, sentence, words.WORDS | CHOICES, tiered) for sentence in chosen]
        # Results come one a line, as laboratory systems print them.
        return "\n".join(filled) if kind == "results" else textwrap.fill(" ".join(filled), 78)


_TIERED = ("course", "appearance", "lungs", "oxygen", "baseline")


@functools.cache
def prose(seed: int, density: str) -> Prose:
    """Returns the prose of a seed, made once a process."""
    return Prose(seed, DENSITIES[density])


def tier(stay: Stay) -> int:
    """Returns 0, 1 or 2: mild, moderate or severe."""
    return (stay.severity > -0.3) + (stay.severity > 0.7)


def other_notes(rng: random.Random, stay: Stay, source: Prose, number: int, every: str = "") -> list[Note]:
    """Returns the notes of a stay that are no summaries.

    One in fifty was flagged as an error, one examination in ten belongs to no admission, one note in two hundred was
    filed twice.

    Args:
      rng: drawn from.
      stay: of the notes.
      source: of their paragraphs.
      number: the first of the numbers that set the texts apart; the notes use as many as they are.
      every: a category that must be among them.
    """
    count = rng.randint(0, 2 * source.density.notes)
    chosen = rng.choices(_NAMES, cum_weights=_SHARES, k=count) + ([every] if every else [])
    hours = max(2, round((stay.discharged - stay.admitted).total_seconds() / 3600))
    result = []
    for index, category in enumerate(chosen):
        kind = KINDS[category]
        body = source.paragraphs(rng, kind.pool, tier(stay), kind.paragraphs)
        outpatient = category in _EXAMINATIONS and rng.random() < 0.1
        note = Note(
            patient=stay.patient,
            admission=None if outpatient else stay.admission,
            day=stay.admitted + timedelta(hours=rng.randrange(1, hours), minutes=rng.randrange(60)),
            category=category,
            description=rng.choice(kind.descriptions),
            text=_framed(rng, stay, category, body, number + index),
            error=rng.random() < 0.02,
            correct="not a discharge summary",
            paper="not a discharge summary",
        )
        result.append(note)
        if rng.random() < 0.005 and not note.error:
            result.append(replace(note, refiled=True))
    return result


_NAMES = tuple(KINDS)
_SHARES = tuple(sum(kind.share for kind in list(KINDS.values())[: i + 1]) for i in range(len(KINDS)))


def _framed(rng: random.Random, stay: Stay, category: str, body: str, number: int) -> str:
    if category == "Radiology":
        return (
            f"[**{stay.admitted:%Y-%m-%d}**] {rng.randrange(24)}:{rng.randrange(60):02} XR{' ' * 30}Clip # "
            f"{number}\nReason: {fill(rng, stay.facts['complaint'], words.WORDS, {})}\n"
            f"______________________________________________________________\n{body}\n"
        )
    if category == "ECG":
        return f"{body}\nTRACING #{rng.randint(1, 3)} [**MD Number(3) {number}**]\n"
    if category == "Physician ":
        return (
            f"Chief Complaint:\n   {stay.facts['complaint']}\n{body}\n[**First Name8 (NamePattern2) {number}**], MD\n"
        )
    return f"{body}\n[**Name8 (MD) {number}**]\n"

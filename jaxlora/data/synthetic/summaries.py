"""The discharge summaries of one admission while they are written, and what each mode must make of them."""

import random
import textwrap
from dataclasses import dataclass, field, replace
from datetime import timedelta

from jaxlora.data.synthetic import cohort
from jaxlora.data.synthetic.cohort import Stay
from jaxlora.data.synthetic.notes import SUMMARY, Note, Prose, tier

KEPT, NEWBORN, NO_SUMMARY, NO_REPORT = "kept", "newborn", "no summary", "no report"
NOTHING = "no complaint, illness or history"
# A note is kept where one of these says something.
REQUIRED = ("Chief Complaint", "History of Present Illness", "Past Medical History")

# What makes a summary as long as a real one: the kind and number of paragraphs under each heading.
_LONG = {
    "History of Present Illness": ("illness", 4),
    "Past Medical History": ("past", 2),
    "Physical Exam": ("exam", 3),
    "Medications on Admission": ("drugs", 2),
    "Pertinent Results": ("results", 9),
    "Brief Hospital Course": ("hospital", 7),
    "Discharge Medications": ("drugs", 3),
    "Discharge Instructions": ("instructions", 2),
}


@dataclass
class Fate:
    """What a mode makes of an admission: whether its note is kept, and whether that note tells a death."""

    fate: str = KEPT
    tells: bool = False


@dataclass
class Summaries:
    """The summaries of a stay, and what each mode must make of them.

    `number` sets the next text apart from all others; `unused` is an admission that no patient has; `carried` says
    that the last summary is filed again under the next stay.
    """

    rng: random.Random
    stay: Stay
    source: Prose
    number: int
    unused: int
    notes: list[Note] = field(default_factory=list)
    correct: Fate = field(default_factory=Fate)
    paper: Fate = field(default_factory=Fate)
    carried: bool = False

    def said(self) -> dict[str, str]:
        """Returns what a new summary says, by heading; as long as the density of the notes asks for."""
        said = {name: textwrap.fill(text, 78) for name, text in cohort.sections(self.rng, self.stay).items()}
        if self.source.density.length:
            ill = tier(self.stay)
            for heading, (kind, paragraphs) in _LONG.items():
                more = self.source.paragraphs(self.rng, kind, ill, paragraphs)
                said[heading] = f"{said[heading]}\n{more}" if heading in said else more
        return said

    def report(self, said: dict[str, str] | None = None, days: int = 0, error: bool = False, style=str) -> Note:
        """Writes a summary that says `said`, `days` after the discharge; `style` is applied to its headings.

        A text stands under its heading, or beside it where it begins with a blank; below an empty text, the next
        heading follows at once.
        """
        said = said or self.said()
        opening = cohort.header(self.stay)
        # The number sets the text apart from every other summary, where the tags are gone too.
        name, unit = self.rng.randrange(1000), self.rng.randrange(10**6)
        name, unit = f"Name: [**Known lastname {name}**]", f"Unit No: [**Numeric Identifier {unit}**]"
        opening.insert(0, f"{name}     {unit}     Job#: {self.number}")
        self.number += 1
        body = []
        for heading, text in said.items():
            beside = not text or text.startswith(" ")
            body.append(f"{style(heading)}:{text}" if beside else f"{style(heading)}:\n{text}")
        return self.write("Report", "\n\n".join(opening + body) + "\n", days, error)

    def addendum(self) -> None:
        """Writes an addendum, two days after the discharge."""
        text = f"Addendum:\nPt seen by PT, cleared. Discussed with [**Name6 (MD) 12**]. Job#: {self.number}\n"
        self.number += 1
        self.write("Addendum", text, 2)

    def write(self, description: str, text: str, days: int = 0, error: bool = False) -> Note:
        """Writes one row of category "Discharge summary" and returns it."""
        day = self.stay.discharged + timedelta(days=days)
        reason = "flagged as an error" if error else ""
        self.notes.append(Note(self.stay.patient, self.stay.admission, day, SUMMARY, description, text, error, reason))
        return self.notes[-1]

    def drop(self, reason: str, **changes) -> None:
        """Says that both modes leave out the row written last, and changes its other fields."""
        self.notes[-1] = replace(self.notes[-1], correct=reason, paper=reason, **changes)

    def both(self, fate: str = KEPT, tells: bool = False) -> None:
        """Says what both modes make of the stay."""
        self.correct, self.paper = Fate(fate, tells), Fate(fate, tells)

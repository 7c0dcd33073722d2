"""The ICD codes of generated admissions: those of their problems, further ones, and what is odd about code tables."""

import itertools
import random
from collections.abc import Callable

from jaxlora.data.synthetic import words
from jaxlora.data.synthetic.cohort import Stay

# A row of a code table: SEQ_NUM and code, both of which may be null.
Row = tuple[int | None, str | None]


def _further() -> tuple[str, ...]:
    """Returns 3,000 ICD-9 diagnosis codes of nearly every category, those of V and E included.

    Tumours of head and neck (14x), myasthenia and dystrophies (358, 359), burns (94x) and donors (V59) are left out:
    they exclude an admission from the ventilation task, and only a quirk may do that.
    """
    rng, codes = random.Random("diagnoses"), []
    for number in range(1, 1000):
        category = f"{number:03}"
        if category[:2] not in ("14", "94") and category not in ("358", "359"):
            codes += [category + rng.choice(("", "0", "1", "9", "01", "12", "90")) for _ in range(3)]
    numbers = [number for number in range(1, 90) if number != 59]
    codes += [f"V{number:02}{rng.choice(('', '1', '5', '81'))}" for number in numbers for _ in range(3)]
    codes += [f"E{number}{rng.choice(('', '0', '8'))}" for number in range(800, 1000, 2)]
    rng.shuffle(codes)
    return tuple(dict.fromkeys(codes))


def _further_procedures() -> tuple[str, ...]:
    rng, codes = random.Random("procedures"), []
    for number in range(1, 100):
        codes += [f"{number:02}{digits}" for digits in rng.sample(("1", "2", "31", "4", "59", "66", "7", "8", "99"), 8)]
    rng.shuffle(codes)
    return tuple(dict.fromkeys(codes))


DIAGNOSES, PROCEDURES = _further(), _further_procedures()
# Few codes are frequent and most are rare, as in a hospital.
_SHARES = list(itertools.accumulate(1 / (20 + rank) for rank in range(len(DIAGNOSES))))


def coded(rng: random.Random, stay: Stay, mean: int) -> tuple[list[Row], list[Row]]:
    """Returns the rows of both code tables of a stay, in table order: its own codes and about `mean` more."""
    diagnoses = [*stay.diagnoses, *rng.choices(DIAGNOSES, cum_weights=_SHARES, k=rng.randint(0, 2 * mean))]
    procedures = [
        *stay.procedures,
        *rng.choices(PROCEDURES, cum_weights=_SHARES[: len(PROCEDURES)], k=rng.randint(0, mean // 2)),
    ]
    return list(enumerate(dict.fromkeys(diagnoses), start=1)), list(enumerate(dict.fromkeys(procedures), start=1))


def _null_code(diagnoses: list[Row], procedures: list[Row]) -> None:
    diagnoses.insert(1, (None, None))


def _null_sequence(diagnoses: list[Row], procedures: list[Row]) -> None:
    diagnoses[0] = (None, diagnoses[0][1])


def _only_null_codes(diagnoses: list[Row], procedures: list[Row]) -> None:
    diagnoses[:] = [(None, None)]


def _no_codes(diagnoses: list[Row], procedures: list[Row]) -> None:
    diagnoses[:] = []
    procedures[:] = []


def _v_and_e_codes(diagnoses: list[Row], procedures: list[Row]) -> None:
    diagnoses[:] = list(enumerate(("V08", "V451", "V4581", "V4511", "E8889", "E8801", "E888"), start=1))


def _leading_zeros(diagnoses: list[Row], procedures: list[Row]) -> None:
    diagnoses[:] = [(1, "0389"), (2, "0031"), (3, "389"), (4, "00845")]
    procedures[:] = [(1, "0066"), (2, "0331"), (3, "3310"), (4, "0017"), (5, "017"), (6, "660")]


def _not_in_the_order_of_sequence(diagnoses: list[Row], procedures: list[Row]) -> None:
    diagnoses.reverse()


# How many in a thousand patients have each, at their first stay. With lost zeros, 0331 and 3310 are one category.
QUIRKS: dict[Callable[[list[Row], list[Row]], None], float] = {
    _null_code: 2,
    _null_sequence: 2,
    _only_null_codes: 1,
    _no_codes: 2,
    _v_and_e_codes: 10,
    _leading_zeros: 10,
    _not_in_the_order_of_sequence: 20,
}


# How each mode cuts ICD-9 codes: V codes of four characters, and zeros that are lost, are the paper's.
CUTS: dict[str, dict[str, Callable[[str], str]]] = {
    "correct": {
        "diag": lambda code: code[:4] if code[0] == "E" else code[:3],
        "proc": lambda code: code[:3],
    },
    "paper": {
        "diag": lambda code: code[:4] if code[0] in "VE" else code[:3],
        "proc": lambda code: code.lstrip("0")[:3],
    },
}


TITLES = {
    **{code: names[0] for code, names, _ in (*words.COMORBIDITIES, *words.SEVERE_COMORBIDITIES)},
    **{code: findings[1] for _, code, _, findings in words.PROBLEMS},
}


def titles(code: str, kind: str) -> tuple[str, str]:
    """Returns the short and the long title of a code; the long one has commas."""
    name = TITLES.get(code, f"{kind} {code[:3]}")
    return f"{name[:18]} NOS"[:24], f"{name[0].upper()}{name[1:]}, not otherwise specified, code group {code[:2]}"


_ICD10 = dict(
    pair.split("=")
    for pair in (
        "486=J189 41071=I214 4280=I509 5789=K922 0389=A419 43491=I6350 5770=K859 82021=S72141A 49121=J441 5849=N179 "
        "5712=K7030 42731=I4891 4019=I10 25000=E119 2724=E785 2449=E039 53081=K219 311=F329 41401=I2510 V4581=Z951 "
        "4928=J439 71590=M1990 1977=C787 1623=C3410 5715=K7460 5856=N186 20500=C9200 51881=J9600 78552=R6521 "
        "99592=R6520 2762=E872 5845=N170 E8889=W19XXXA E8859=W010XXA 1480=C139"
    ).split()
)
_PCS = (
    "5A1955Z 5A1945Z 0BH17EZ 02HV33Z 5A1D60Z 30233N1 B245ZZZ 0DJ08ZZ 4A023N7 02703ZZ 3E0G36Z 5A09357 0SR904Z 0W9G3ZX "
    "027034Z B2111ZZ 3E033XZ 0QS634Z 00K00ZZ 06BY0ZC"
).split()


def icd10(code: str) -> str:
    """Returns an ICD-10-CM code for an ICD-9 diagnosis: its counterpart, or else one that stands in for it."""
    if code in _ICD10:
        return _ICD10[code]
    number = int(code.lstrip("VE"))
    return f"{'ABDEFHJKLMNPRS'[number % 14]}{number % 90 + 10}{'' if number % 3 == 0 else number % 10}"


def icd10_procedure(code: str) -> str:
    """Returns an ICD-10-PCS code that stands in for an ICD-9 procedure."""
    return _PCS[int(code) % len(_PCS)]

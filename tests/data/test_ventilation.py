"""Prolonged mechanical ventilation, derived from the tables."""

import csv
from collections import Counter
from datetime import datetime, timedelta

import pytest

from jaxlora.data import ventilation
from jaxlora.data.mimic import Admission, Ventilation
from jaxlora.data.mimic3 import Mimic3
from jaxlora.data.mimic4 import Mimic4
from jaxlora.errors import UserError

START = datetime(2150, 1, 1)
PROCEDURES = "HADM_ID ICUSTAY_ID STARTTIME ENDTIME ITEMID CANCELREASON"
CHARTS = "HADM_ID ICUSTAY_ID ITEMID CHARTTIME VALUE ERROR"


def put(folder, name, columns, *rows):
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(), *rows])


def at(hours):
    return START + timedelta(hours=hours)


def span(stay, begin, end, admission="1"):
    return Ventilation(admission, stay, at(begin), at(end))


def test_the_stay_that_is_ventilated_first_counts_with_its_gaps():
    spans = [span("b", 90, 400), span("a", 30, 40), span("a", 5, 10), span("a", 6, 8), span("c", 0, 1, "2")]
    assert ventilation.first_stays(spans) == {"1": (at(5), at(40)), "2": (at(0), at(1))}


def test_a_span_that_ends_before_it_begins_tells_nothing():
    assert ventilation.first_stays([span("a", 9, 8), span("b", 20, 30), span("a", 0, -1, "2")]) == {
        "1": (at(20), at(30))
    }


@pytest.mark.parametrize(("hours", "label"), [(41.9, None), (42, 0), (48, 0), (161.9, 0), (162, 1), (168, 1), (400, 1)])
def test_six_hours_of_grace(tmp_path, hours, label):
    flow = Counter()
    assert labels(tmp_path, hours, flow=flow) == ({} if label is None else {"1": label})
    short = "admissions: on a ventilator for less than 2 days, from first start to last end"
    assert flow == ({short: 1} if label is None else {})


def labels(folder, hours, born="2090-01-01", donor=False, codes=(), flow=None, patient="7"):
    put(folder, "PATIENTS", "SUBJECT_ID DOB", (patient, born))
    put(folder, "DIAGNOSES_ICD", "HADM_ID ICD9_CODE", ("2", "1410"), *(("1", code) for code in codes))
    put(folder, "PROCEDUREEVENTS_MV", PROCEDURES, ("1", "5", at(0), at(hours), 225792, 0))
    admissions = {"1": Admission("7", False, False, 9.0, START, donor)}
    return ventilation.labels(Mimic3(folder), admissions, ["1"], Counter() if flow is None else flow)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"born": "2140-01-01"}, "admissions: younger than 18"),
        ({"patient": "8"}, "admissions: a patient that PATIENTS lacks"),
        ({"codes": ("4019", "14310")}, "admissions: a diagnosis that the definition of PMV excludes"),
        ({"codes": ("35801",)}, "admissions: a diagnosis that the definition of PMV excludes"),
        ({"codes": ("94120",)}, "admissions: a diagnosis that the definition of PMV excludes"),
        ({"codes": ("V594",)}, "admissions: an organ donor's"),
        ({"donor": True}, "admissions: an organ donor's"),
        ({"codes": ("35800", "0140", "9420")}, None),
    ],
)
def test_exclusions_are_counted(tmp_path, given, reason):
    flow = Counter()
    found = labels(tmp_path, 100, flow=flow, **given)
    assert (found, flow) == ({}, {reason: 1}) if reason else (found, flow) == ({"1": 0}, {})


def test_who_was_never_ventilated(tmp_path):
    labels(tmp_path, 100)
    flow = Counter()
    assert ventilation.labels(Mimic3(tmp_path), {}, ["3"], flow) == {}
    assert flow == {"admissions: never on a ventilator": 1}


def test_metavision_charts_procedures(tmp_path):
    rows = [
        ("1", "5", at(0), at(8), 225792, 0),
        ("1", "5", at(9), at(10), 225794, 0),  # not invasive
        ("1", "5", at(9), at(10), 225792, 2),  # cancelled
        ("", "5", at(9), at(10), 225792, 0),
        ("2", "", at(3), at(4), 225792, ""),
    ]
    put(tmp_path, "PROCEDUREEVENTS_MV", PROCEDURES, *rows)
    assert list(Mimic3(tmp_path).ventilations()) == [span("5", 0, 8), span("", 3, 4, "2")]
    put(tmp_path, "PROCEDUREEVENTS_MV", PROCEDURES, ("1", "5", at(0), "later", 225792, 0))
    with pytest.raises(UserError, match="column 'ENDTIME', row 1: not a time like"):
        list(Mimic3(tmp_path).ventilations())


def carevue(folder, *events):
    put(folder, "PROCEDUREEVENTS_MV", PROCEDURES, ("9", "", at(0), at(1), 225794, 0))
    put(folder, "CHARTEVENTS", CHARTS, *(("1", "5", item, at(hour), value, "") for hour, item, value in events))
    spans = list(Mimic3(folder).ventilations())
    return [((s.start - START) / timedelta(hours=1), (s.end - START) / timedelta(hours=1)) for s in spans]


def test_carevue_charts_settings(tmp_path):
    peep, device, tube, kind = 506, 467, 640, 720
    assert carevue(tmp_path, (4, peep, "5"), (0, kind, "Drager"), (11.9, device, "Ventilator")) == [(0, 11.9)]
    assert carevue(tmp_path, (0, peep, "5"), (8, peep, "5"), (16.1, peep, "5"), (17, peep, "5")) == [(0, 8), (16.1, 17)]
    assert carevue(tmp_path, (0, peep, "5"), (3, tube, "Extubated"), (4, peep, "5"), (6, peep, "")) == [(0, 3)]
    off = [(0, peep, "5"), (2, peep, "5"), (3, device, "Nasal Cannula"), (4, peep, "5"), (5, peep, "5")]
    assert carevue(tmp_path, *off) == [(0, 2), (4, 5)]
    assert carevue(tmp_path, *off[:3], (2.5, device, "None"), (4, tube, "Extubated"), (4, 211, "80")) == [(0, 2)]
    nothing = [(0, kind, "Other/Remarks"), (1, kind, "Other/Remarks"), (2, tube, "Extubated"), (3, tube, "Extubated")]
    assert carevue(tmp_path, *nothing) == []


def test_rows_of_charts_that_do_not_count(tmp_path):
    carevue(tmp_path, (0, 506, "5"))
    rows = [("1", "5", 506, at(0), "5", 0), ("1", "5", 506, at(1), "5", 0), ("1", "5", 506, at(2), "5", 1)]
    rows += [("", "5", 506, at(3), "5", 0), ("1", "", 506, at(4), "5", 0), ("1", "6", 506, at(5), "5", 0)]
    put(tmp_path, "CHARTEVENTS", CHARTS, *rows)
    assert list(Mimic3(tmp_path).ventilations()) == [span("5", 0, 1)]


def test_mimic4(tmp_path):
    columns = "subject_id hadm_id stay_id starttime endtime itemid"
    rows = [(7, 1, 5, at(0), at(50), 225792), (7, 1, 5, at(60), at(170), 225792), (7, 1, 4, at(0), at(9), 227194)]
    rows += [(8, 2, 6, at(0), at(50), 225792), (7, "", 5, at(0), at(900), 225792)]
    put(tmp_path, "procedureevents", columns, *rows)
    put(tmp_path, "patients", "subject_id anchor_age anchor_year", (7, 60, 2150), (8, 60, 2150))
    put(tmp_path, "diagnoses_icd", "hadm_id icd_code icd_version", (1, "C150", 10), (2, "C140", 10), (1, "140", 10))
    admissions = {"1": Admission("7", False, False, 9.0, START), "2": Admission("8", False, False, 9.0, START)}
    assert ventilation.labels(Mimic4(tmp_path), admissions, ["1", "2"], Counter()) == {"1": 1}


def test_the_public_demo(shared_data):
    release = Mimic3(shared_data / "mimiciii-demo-1.4")
    spans = list(release.ventilations())
    assert len(spans) == 26
    first = ventilation.first_stays(spans)
    assert len(first) == 21
    assert sum(ventilation.reaches(*found, ventilation.PROLONGED) for found in first.values()) == 7

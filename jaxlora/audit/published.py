"""Every count that others have published and that the tables, the cohort and the datasets are checked against."""

# Rows of the tables. MIMIC-III 1.4: MIT-LCP/mimic-code, mimic-iii/buildmimic/postgres/postgres_checks.sql. MIMIC-IV:
# the same repository, mimic-iv/buildmimic/postgres/validate.sql as it was for each version; MIMIC-IV-Note likewise.
TABLES = {
    "MIMIC-III 1.4": {
        "NOTEEVENTS": 2_083_180,
        "ADMISSIONS": 58_976,
        "PATIENTS": 46_520,
        "DIAGNOSES_ICD": 651_047,
        "PROCEDURES_ICD": 240_095,
        "D_ICD_DIAGNOSES": 14_567,
        "D_ICD_PROCEDURES": 3_882,
        "ICUSTAYS": 61_532,
        "PROCEDUREEVENTS_MV": 258_066,
        "CHARTEVENTS": 330_712_483,
        "LABEVENTS": 27_854_055,
    },
    "MIMIC-IV 2.2": {
        "admissions": 431_231,
        "patients": 299_712,
        "diagnoses_icd": 4_756_326,
        "procedures_icd": 669_186,
        "icustays": 73_181,
        "procedureevents": 696_092,
        "chartevents": 313_645_063,
    },
    "MIMIC-IV 3.1": {
        "admissions": 546_028,
        "patients": 364_627,
        "diagnoses_icd": 6_364_488,
        "procedures_icd": 859_655,
        "icustays": 94_458,
        "procedureevents": 808_706,
        "chartevents": 432_997_491,
    },
    "MIMIC-IV-Note 2.2": {
        "discharge": 331_793,
        "radiology": 2_321_355,
        "discharge_detail": 186_138,
        "radiology_detail": 6_046_121,
    },
}

# PhysioNet's abstract of MIMIC-IV-Note says 331,794 discharge summaries, mimic-code one fewer.
TOLERANCE = {"discharge": 1}

# Rows a split, in the order train, validation, test. Clinical LLaMA-LoRA (arXiv 2307.03042), table 1; LOS and MOR are
# what users of bvanaken/clinical-outcome-prediction report too (its issues 11 and 17). MOR before the death-wording
# filter of September 2021: the lists of that repository have one line for each of its notes.
ROWS = {
    "mor_unfiltered": (33_997, 4_918, 9_830),
    "mor": (33_954, 4_908, 9_822),
    "los": (30_421, 4_391, 8_797),
    "diag": (33_994, 4_918, 9_829),
    "proc": (30_030, 4_357, 8_681),
    "pmv": (5_666, 707, 706),
}

# Labels: the constants of aryopg/clinical_peft, as long as table 1 of the paper says.
LABELS = {"diag": 1_266, "proc": 711}

# Notes of each class, all splits together, in label order. LOS: van Aken et al. (EACL 2021); its sum is the rows of
# LOS above. MOR: those survivors, and the rest of the rows before the death-wording filter.
BALANCE = {"los": (5_596, 16_134, 13_391, 8_488), "mor_unfiltered": (43_609, 5_136)}

# Patients of mimic_{train,val,test}.csv of bvanaken/clinical-outcome-prediction, counted.
LISTED_PATIENTS = {"train": 26_124, "validation": 3_732, "test": 7_465}

# What the recipe drops: by name of the dataset ("" for the admission notes that all are made of), the count that
# `prepare` keeps in flow.json. Differences of the numbers above.
FLOW = {
    "": {"admissions: kept": 48_745},
    "mor": {"admissions: the note tells the death": 61},
    "los": {"admissions: died in hospital": 5_136},
    "diag": {"admissions: no code": 4},
    "proc": {"admissions: no code": 5_677},
}

"""The wording of generated clinical notes: templates whose `{slots}` are filled from `WORDS`.

Wherever there are three alternatives of a thing, they are its mild, moderate and severe presentation.
"""

WORDS = {
    "denies": ["denies", "no", "without", "neg for"],
    "with": ["w/", "with"],
    "history": ["h/o", "history of", "PMH of", "known"],
    "presents": ["presents w/", "p/w", "comes in with", "was brought in with", "is admitted with", "presented with"],
    "place": ["home", "[**Hospital1 18**]", "an outside hospital", "rehab", "clinic", "[**Location (un) 86**]"],
    "days": ["two days", "3 days", "a week", "several days", "4-5 days", "the last few days"],
    "family": ["daughter", "son", "wife", "husband", "sister", "caregiver"],
    "negative": ["fever", "chills", "chest pain", "n/v", "diarrhea", "dysuria", "rash", "headache", "syncope", "cough"],
}

# How it began, how the patient looks, what support and which baseline: three lists, mild to severe.
COURSE = (
    [
        "Sx have been mild and stable over {days}.",
        "Gradual onset over {days}, now improving.",
        "Feels better since arrival to the ED.",
        "Sent from {place} by PCP for evaluation; sx intermittent.",
        "Noted on a routine visit, feels well.",
        "Symptoms resolved w/ rest and po fluids.",
    ],
    [
        "Sx have been worsening over {days}.",
        "Called PCP after {days} and was referred to the ED.",
        "Did not improve with treatment at {place}.",
        "Progressive over {days} despite home meds.",
        "Given IVF and one dose of abx in the ED with some effect.",
        "Family noted poor po intake and fatigue for {days}.",
    ],
    [
        "Found unresponsive by {family}, EMS called.",
        "Rapidly deteriorated, transferred to ICU.",
        "Became hypotensive in the ED, on levophed.",
        "Intubated in the field by EMS.",
        "Lactate markedly elevated, pressors started.",
        "Arrested en route, ROSC after CPR.",
    ],
)
APPEARANCE = (
    [
        "Well appearing, NAD",
        "Comfortable, pleasant, cooperative, A&Ox3",
        "Alert and oriented, in no distress",
        "NAD, conversant, walking",
        "Sitting up in bed, smiling, AOx3",
    ],
    [
        "Tired appearing, mild distress",
        "Uncomfortable but alert, oriented x2",
        "Fatigued, speaking in short sentences",
        "Ill appearing, slow to answer",
        "Pale, moderately uncomfortable",
    ],
    [
        "Obtunded, minimally responsive",
        "Intubated, no response to commands",
        "Toxic, mottled, cool extremities",
        "Cachectic, agonal breathing",
        "Unresponsive, pupils sluggish",
    ],
)
LUNGS = (
    ["CTAB, no w/r/r", "lungs clear throughout", "clear bilat, no wheeze", "good air movement bilat"],
    ["bibasilar crackles", "scattered rhonchi", "decreased at bases", "exp wheezes"],
    ["diffuse coarse crackles", "poor air movement, gasping", "absent breath sounds, vented"],
)
OXYGEN = (
    ["RA", "room air", "ambient air"],
    ["2L NC", "3L NC", "4L nasal cannula"],
    ["NRB", "FiO2 100%", "vent", "BiPAP"],
)
ABDOMEN = ["abd soft, NT/ND", "soft NTND +BS", "abdomen benign", "obese, soft, nontender", "abd soft, no HSM"]
HEART = ["RRR no m/r/g", "RRR, nl S1 S2", "irreg irreg", "tachy, no murmurs", "2/6 SEM at LUSB"]
BASELINE = (
    [
        "Lives alone, independent in ADLs",
        "Works full time, walks the dog daily",
        "Retired teacher, active, volunteers",
        "Married, gardens, cooks and drives",
    ],
    [
        "Lives w/ {family}, walks with cane",
        "Uses a walker, needs help w/ shopping",
        "Recently at rehab, now home w/ VNA",
        "Lives in assisted living",
    ],
    [
        "Nursing home resident, bedbound",
        "Total care, nonverbal at baseline",
        "Home hospice was discussed, DNR/DNI",
        "Wheelchair bound, G-tube fed",
    ],
)
HABITS = [
    "no tobacco",
    "20 pk-yr smoker, quit",
    "rare EtOH",
    "denies tob/EtOH/IVDU",
    "current smoker",
    "h/o EtOH abuse",
]
RELATIVES = [
    "Noncontributory",
    "Mother with DM",
    "Father d. MI at 60",
    "Brother w/ colon ca",
    "No family hx of CAD",
    "Unknown",
    "HTN in both parents",
    "Sister with breast ca",
]
DRUG_ALLERGIES = [
    "NKDA",
    "Penicillins",
    "Sulfa",
    "No Known Drug Allergies",
    "Codeine",
    "Iodine; shellfish",
    "Lisinopril",
]

# Chief complaints, ICD-9 diagnosis, procedures, and what was found: mild, moderate, severe.
PROBLEMS = (
    (
        ("SOB", "dyspnea", "shortness of breath", "cough and fever"),
        "486",
        ("9390", "3324", "9672"),
        ("CXR with small infiltrate, sats stable", "CXR w/ RLL pneumonia", "multilobar PNA w/ ARDS"),
    ),
    (
        ("chest pain", "CP", "substernal chest pressure"),
        "41071",
        ("3722", "0066", "3761"),
        ("trop neg x2, EKG unchanged", "NSTEMI, trop 0.4", "STEMI w/ cardiogenic shock"),
    ),
    (
        ("leg swelling", "DOE", "orthopnea", "weight gain"),
        "4280",
        ("8872", "3893", "3961"),
        ("mild volume overload on exam", "acute on chronic CHF, BNP elevated", "EF 10%, on milrinone drip"),
    ),
    (
        ("BRBPR", "melena", "hematemesis", "GI bleed"),
        "5789",
        ("4516", "9904", "4513"),
        ("Hct stable, guaiac pos, no BRB", "Hct drop to 24, 2u PRBC", "massive bleed, Hct 15, 8u PRBC"),
    ),
    (
        ("fever", "rigors", "altered mental status", "hypotension"),
        "0389",
        ("3893", "9671", "0017"),
        ("UA positive, cx pending", "GNR bacteremia from urinary source", "septic shock, DIC"),
    ),
    (
        ("L sided weakness", "slurred speech", "facial droop", "HA"),
        "43491",
        ("8703", "9910", "0124"),
        ("TIA on exam, deficits resolved", "MCA infarct w/ hemiparesis", "large ICH w/ herniation"),
    ),
    (
        ("abd pain", "epigastric pain", "nausea/vomiting"),
        "5770",
        ("8801", "5187", "966"),
        (
            "mild pancreatitis, lipase 300",
            "pancreatitis w/ fluid collection",
            "necrotizing pancreatitis",
        ),
    ),
    (
        ("s/p fall", "hip pain", "R hip fx", "found on floor"),
        "82021",
        ("7935", "8152", "8826"),
        ("nondisplaced fx on plain films", "displaced hip fx, OR planned", "SDH and unstable pelvis"),
    ),
    (
        ("wheezing", "COPD flare", "increased sputum"),
        "49121",
        ("9390", "9604", "9671"),
        ("mild COPD flare, responded to nebs", "COPD exac, on steroids", "hypercarbic failure, pH 7.08"),
    ),
    (
        ("decreased urine output", "weakness", "fatigue", "high K"),
        "5849",
        ("3995", "3895", "5498"),
        ("Cr 1.4 from 1.0, prerenal", "ARF, Cr 3.5", "anuric, K 7.2, on CVVH"),
    ),
    (
        ("jaundice", "confusion", "abdominal distension"),
        "5712",
        ("5491", "4223", "9907"),
        ("mild ascites, bili 1.5, alert", "tense ascites, encephalopathy", "fulminant failure, HRS"),
    ),
    (
        ("palpitations", "lightheadedness", "rapid HR"),
        "42731",
        ("9961", "3734", "8872"),
        ("brief afib, now back in NSR", "afib w/ RVR to 150s", "VT storm with repeated shocks"),
    ),
)

# ICD-9 code, names, home medications; the severe ones come with severe admissions.
COMORBIDITIES = (
    ("4019", ("HTN", "hypertension"), ("lisinopril 10", "amlodipine 5", "HCTZ")),
    ("25000", ("DM2", "NIDDM", "type 2 diabetes"), ("metformin", "glipizide", "lantus")),
    ("2724", ("HLD", "hyperlipidemia", "high cholesterol"), ("simvastatin", "lipitor 40")),
    ("2449", ("hypothyroidism",), ("levothyroxine", "synthroid")),
    ("53081", ("GERD", "reflux"), ("omeprazole", "protonix")),
    ("311", ("depression",), ("sertraline", "celexa")),
    ("41401", ("CAD", "CAD s/p stent"), ("ASA 81", "plavix", "metoprolol")),
    ("V4581", ("s/p CABG", "CABG x3"), ("ASA 325", "metoprolol")),
    ("4928", ("emphysema",), ("albuterol", "spiriva")),
    ("71590", ("OA", "osteoarthritis"), ("tylenol prn",)),
)
SEVERE_COMORBIDITIES = (
    ("1977", ("metastatic colon ca", "liver mets"), ("oxycontin", "dexamethasone")),
    ("1623", ("lung ca on chemo", "stage IV NSCLC"), ("morphine", "zofran")),
    ("5715", ("cirrhosis", "ESLD"), ("lactulose", "spironolactone")),
    ("5856", ("ESRD on HD",), ("sevelamer", "nephrocaps")),
    ("20500", ("AML", "relapsed AML"), ("acyclovir", "voriconazole")),
)
SEVERE_CODES = ("51881", "78552", "99592", "2762", "5845")

OPENINGS = (
    "{age} y/o {sex} {with} {history} {past} {presents} {complaint}.",
    "{age}yo{sex} p/w {complaint} x {days}.",
    "This is a {age} year old {sex} who {presents} {complaint}.",
    "Pt is a {age}{sex} {with} {past} who {presents} {complaint} for {days}.",
    "{age} y/o {sex} from {place}. Pt reports {complaint}.",
    'Pt is a {age} y/o {sex}, states "I have had {complaint}" for {days}.',
)
HOSPITAL_COURSES = (
    "Pt was admitted to the floor and treated per protocol. Labs were followed daily.",
    "Admitted to the MICU. Home meds were held, then restarted as tolerated.",
    "Seen by cardiology and PT. Electrolytes repleted. Diet advanced.",
    "Started on IV abx, cultures followed. Nutrition consulted.",
)
NURSING = (
    "NEURO: {appearance}. RESP: {lungs} on {oxygen}. GI: {abdomen}. PLAN: cont to monitor.",
    "Pt {appearance}. Lungs {lungs}, sats ok on {oxygen}. Family in to visit. Will follow.",
    "S/O: hr {hr}, bp {bp}. {lungs}, {oxygen}. A/P: {complaint}, support pt and family.",
)
RADIOLOGY = (
    "PORTABLE CHEST\nREASON: {complaint}\nFINDINGS: {finding}. No ptx. Prior [**2150-3-4**].\nIMPRESSION: {finding}.",
    "CT WITHOUT CONTRAST\nINDICATION: {age}{sex} {complaint}.\nIMPRESSION: {finding}. Dr. [**Last Name (un) 12**].",
)

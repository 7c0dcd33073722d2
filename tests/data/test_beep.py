"""BEEP's label file is read without running what a pickle asks for."""

import os
import pickle
from collections import OrderedDict, defaultdict

import numpy as np
import pytest

from jaxlora.data import beep
from jaxlora.data.beep import Labelled
from jaxlora.errors import UserError

LABELS = {100001: (1, 0.7, "train"), 100003: (0, 0.2, "val"), 100006: (0, "test")}
ENTRIES = [Labelled("100001", 1, "train"), Labelled("100003", 0, "validation"), Labelled("100006", 0, "test")]


def put(folder, value, protocol=pickle.DEFAULT_PROTOCOL):
    path = folder / "pmv_labels.pkl"
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("of", ["tuples", "lists", "texts", "numpy", "ordered", "default"])
def test_labels(tmp_path, protocol, of):
    forms = {
        "tuples": LABELS,
        "lists": {key: list(value) for key, value in LABELS.items()},
        "texts": {str(key): (str(value[0]), "", value[-1]) for key, value in LABELS.items()},
        "numpy": {np.int64(key): (np.int32(value[0]), np.float64(0.5), value[-1]) for key, value in LABELS.items()},
        "ordered": OrderedDict(LABELS),
        "default": defaultdict(list, LABELS),
    }
    assert beep.read(put(tmp_path, forms[of], protocol)) == ENTRIES


class Command:
    """What a malicious pickle does: it asks for a call."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_nothing(tmp_path, protocol):
    made = tmp_path / "made"
    for command in (Command(os.mkdir, str(made)), Command(eval, f"open({str(made)!r}, 'w')"), Command(exec, "1")):
        with pytest.raises(UserError, match="pmv_labels.pkl: not a label file; set beep to BEEP's pmv_labels.pkl"):
            beep.read(put(tmp_path, {1: (command, "train")}, protocol))
    assert not made.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"HADM_ID,label,split\n1,0,train\n",
        pickle.dumps(LABELS)[:-10],
        pickle.dumps([1, 2]),
        pickle.dumps({}),
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo of two thousand million entries
        b"\x80\x02ccollections\nOrderedDict.",
        b"\x80\x02cjaxlora.data.beep\nread\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x0cdict.fromkeys\x93.",  # an attribute of what is allowed
    ],
)
def test_what_is_no_label_file(tmp_path, content):
    with pytest.raises(UserError, match="pmv_labels.pkl: not a label file"):
        beep.read(put(tmp_path, content))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({7: (2, "train")}, "entry 2: the label is neither 0 nor 1"),
        ({7: (None, "train")}, "entry 2: the label is neither 0 nor 1"),
        ({7: ([1], "train")}, "entry 2: the label is neither 0 nor 1"),
        ({7: (1, "secret")}, "entry 2: the split is none of train, val and test"),
        ({7: (1, ["train"])}, "entry 2: the split is none of train, val and test"),
        ({7: 1}, "entry 2: not a label and a split"),
        ({7: (1,)}, "entry 2: not a label and a split"),
        ({(7, 8): (1, "train")}, "entry 2: the key is not a HADM_ID"),
        ({10**6000: (1, "train")}, "entry 2: the key is not a HADM_ID"),
        ({float("inf"): (1, "train")}, "entry 2: the key is not a HADM_ID"),
        ({"secret": (1, "train")}, "entry 2: the key is not a HADM_ID"),
        ({"100001": (0, "train")}, "entry 2: an earlier entry has its HADM_ID"),
    ],
)
def test_entries_that_are_wrong(tmp_path, entry, message):
    with pytest.raises(UserError, match=f"pmv_labels.pkl, {message}") as caught:
        beep.read(put(tmp_path, {100001: (1, "train")} | entry))
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["_codecs encode", "numpy.core.multiarray scalar"])
def test_a_pickle_changes_nothing(tmp_path, name):
    """BUILD, `b`, would set what later readers find: a function's defaults, or the items of a dictionary."""
    function = b"c" + name.replace(" ", "\n").encode() + b"\n"
    for state in (b"N}(V__defaults__\nK\x01K\x02\x86u\x86", b"}(Vmark\nK\x01u"):
        with pytest.raises(UserError, match="pmv_labels.pkl: not a label file"):
            beep.read(put(tmp_path, b"\x80\x02}K\x01" + function + state + b"bs."))
    for changed in (beep._encode, beep._scalar):
        assert changed.__defaults__ is None and not vars(changed)
    entries = b"ccollections\nOrderedDict\n)RK\x01K\x01Vtrain\n\x86s"
    assert beep.read(put(tmp_path, b"\x80\x02" + entries + b".")) == [Labelled("1", 1, "train")]
    with pytest.raises(UserError, match="pmv_labels.pkl: not a label file"):
        beep.read(put(tmp_path, b"\x80\x02" + entries + b"}(Vitems\nccollections\nOrderedDict\nub."))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="absent.pkl: no such file; set beep to BEEP's pmv_labels.pkl"):
        beep.read(tmp_path / "absent.pkl")

"""Patients fall into splits by a hash, and identifiers are keyed."""

from collections import Counter

import pytest
from ml_collections import ConfigDict

from jaxlora.data.examples import check_shares, keyed, load_key, split_of
from jaxlora.errors import UserError

SHARES = ConfigDict({"validation": 0.1, "test": 0.2, "seed": 0})


def test_splits_have_their_shares_and_depend_on_the_seed():
    splits = [split_of(str(i), **SHARES) for i in range(10_000)]
    counts = Counter(splits)
    assert abs(counts["test"] - 2000) < 150 and abs(counts["validation"] - 1000) < 120
    assert splits == [split_of(str(i), **SHARES) for i in range(10_000)]
    assert splits != [split_of(str(i), **{**SHARES, "seed": 1}) for i in range(10_000)]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.1, -0.2)])
def test_shares_leave_patients_to_train_on(shares):
    with pytest.raises(UserError, match="^split: "):
        check_shares(ConfigDict({"validation": shares[0], "test": shares[1], "seed": 0}))


def test_the_key_is_made_once_and_is_private(tmp_path):
    key = load_key(tmp_path)
    assert len(key) == 32 and load_key(tmp_path) == key
    assert (tmp_path / "id.key").stat().st_mode & 0o777 == 0o600


def test_a_damaged_key_is_refused(tmp_path):
    (tmp_path / "id.key").write_text("abc")
    with pytest.raises(UserError, match="id.key: not 64 hexadecimal digits"):
        load_key(tmp_path)


def test_keyed_ids_need_the_key():
    ids = {keyed(b"a" * 32, "145834"), keyed(b"b" * 32, "145834"), keyed(b"a" * 32, "145835")}
    assert len(ids) == 3 and all(len(id) == 16 and int(id, 16) >= 0 for id in ids)

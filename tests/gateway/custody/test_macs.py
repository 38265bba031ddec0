from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gateway.custody.macs import FIELD, checked, with_mac
from shared.problems import SecretKeyIntegrity
from shared.secretbytes import SecretBytes

calmly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
TEXT = st.text(st.sampled_from("ab:{}\0"), max_size=3)
FIELDS = st.dictionaries(TEXT, TEXT, max_size=3)
KEY = bytes(32)


def key() -> SecretBytes:
    return SecretBytes(KEY)


@calmly
@given(TEXT, FIELDS)
def test_what_was_written_is_read(name: str, fields: dict[str, str]) -> None:
    assert checked(key(), name, with_mac(key(), name, fields)) == fields


@calmly
@given(TEXT, FIELDS, TEXT, FIELDS)
def test_nothing_else_is(name: str, fields: dict[str, str], other_name: str, other: dict[str, str]) -> None:
    assume((name, fields) != (other_name, other))
    mac = with_mac(key(), name, fields)[FIELD]
    with pytest.raises(SecretKeyIntegrity):
        checked(key(), other_name, {**other, FIELD: mac})


@pytest.mark.parametrize("other", [{"a": "1", "c": "2"}, {"a": "2", "b": "1"}, {"a": "1"}, {"a": "12"}, {"a1": "b2"}])
def test_renamed_exchanged_and_joined_fields_are_refused(other: dict[str, str]) -> None:
    mac = with_mac(key(), "name", {"a": "1", "b": "2"})[FIELD]
    with pytest.raises(SecretKeyIntegrity):
        checked(key(), "name", {**other, FIELD: mac})


@pytest.mark.parametrize("mac", ["", "00" * 32, "é" * 64])
def test_no_mac_is_no_mac(mac: str) -> None:
    for fields in ({"a": "1"}, {"a": "1", FIELD: mac}):
        with pytest.raises(SecretKeyIntegrity):
            checked(key(), "name", fields)


def test_another_key_makes_another_mac() -> None:
    with pytest.raises(SecretKeyIntegrity):
        checked(SecretBytes(KEY[:-1] + b"\1"), "name", with_mac(key(), "name", {"a": "1"}))

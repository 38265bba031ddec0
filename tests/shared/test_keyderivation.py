from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.keyderivation import (
    CHAIN_START,
    Algorithm,
    WrongKey,
    be32,
    chain_mac,
    hkdf_info,
    length_prefix,
    method_key,
    record_aad,
    unwrap,
    wrap,
)

KEY = bytes(range(32))
NONCE = bytes(12)
CONTEXT: dict[str, Any] = {
    "tenant": "acme",
    "key_id": "key_1",
    "model_id": "ifadit/small@1",
    "image_nonce": b"n" * 16,
    "dim": 128,
}
RECORD: dict[str, Any] = {
    "purpose": "method-secret",
    "tenant": "acme",
    "key_id": "key_1",
    "key_version": 1,
    "kek_id": "main",
    "kek_version": 3,
    "algorithm": "A256GCM",
}


@given(st.lists(st.binary(max_size=6), max_size=5), st.lists(st.binary(max_size=6), max_size=5))
def test_different_tuples_never_give_the_same_octets(a: list[bytes], b: list[bytes]) -> None:
    assert (length_prefix(*a) == length_prefix(*b)) == (a == b)


def test_text_and_octets_are_prefixed_alike() -> None:
    assert length_prefix("é", b"x") == struct.pack(">I", 2) + "é".encode() + struct.pack(">I", 1) + b"x"
    with pytest.raises(OverflowError):
        be32(2**32)


def test_the_key_is_hkdf_as_rfc_5869_writes_it() -> None:
    info = hkdf_info(**CONTEXT)
    extracted = hmac.new(bytes(32), KEY, hashlib.sha256).digest()
    block, expected = b"", b""
    for counter in range(1, 17):
        block = hmac.new(extracted, block + info + bytes([counter]), hashlib.sha256).digest()
        expected += block
    assert method_key(bytearray(KEY), **CONTEXT) == expected


@pytest.mark.parametrize("change", [{"tenant": "acm"}, {"key_id": "e"}, {"model_id": "m"}, {"image_nonce": b""}])
def test_each_part_of_the_context_changes_the_whole_key(change: dict[str, Any]) -> None:
    ours, other = method_key(KEY, **CONTEXT), method_key(KEY, **CONTEXT | change)
    assert sum(a == b for a, b in zip(ours, other, strict=True)) < 20


@given(st.integers(0, 255))
def test_one_wrong_bit_of_the_secret_changes_the_whole_key(bit: int) -> None:
    near = bytearray(KEY)
    near[bit // 8] ^= 1 << bit % 8
    ours, other = method_key(KEY, **CONTEXT), method_key(near, **CONTEXT)
    assert sum(a == b for a, b in zip(ours, other, strict=True)) < 20


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_a_secret_of_another_length_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="32"):
        method_key(secret, **CONTEXT)


class TestWrap:
    @pytest.mark.parametrize("algorithm", ["A256GCM", "A256GCMSIV"])
    def test_what_is_wrapped_comes_out_again(self, algorithm: Algorithm) -> None:
        aad = record_aad(**RECORD | {"algorithm": algorithm})
        wrapped = wrap(KEY, NONCE, bytearray(b"secret"), aad, algorithm)
        assert unwrap(bytearray(KEY), NONCE, wrapped, aad, algorithm) == b"secret"
        assert len(wrapped) == len(b"secret") + 16

    @pytest.mark.parametrize("field", RECORD)
    def test_it_does_not_open_in_another_context(self, field: str) -> None:
        wrapped = wrap(KEY, NONCE, b"secret", record_aad(**RECORD))
        other = 9 if isinstance(RECORD[field], int) else "other"
        with pytest.raises(WrongKey):
            unwrap(KEY, NONCE, wrapped, record_aad(**RECORD | {field: other}))

    @given(st.integers(0, 8 * 22 - 1))
    def test_it_does_not_open_with_any_bit_flipped(self, bit: int) -> None:
        wrapped = bytearray(wrap(KEY, NONCE, b"secret", b""))
        wrapped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WrongKey):
            unwrap(KEY, NONCE, bytes(wrapped), b"")

    def test_every_reason_looks_the_same(self) -> None:
        wrapped = wrap(KEY, NONCE, b"secret", b"")
        messages = set()
        for key, nonce, octets, algorithm in (
            (bytes(32), NONCE, wrapped, "A256GCM"),
            (KEY, b"1" * 12, wrapped, "A256GCM"),
            (KEY, NONCE, b"short", "A256GCM"),
            (KEY, b"", wrapped, "A256GCM"),
            (KEY, NONCE, wrapped, "A256GCMSIV"),
            (KEY, NONCE, wrapped, "none"),
        ):
            with pytest.raises(WrongKey) as caught:
                unwrap(key, nonce, octets, b"", algorithm)  # type: ignore[arg-type]
            messages.add(str(caught.value))
        assert len(messages) == 1

    def test_a_key_or_nonce_of_another_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="nonce"):
            wrap(KEY, bytes(8), b"secret", b"")
        with pytest.raises(ValueError, match="32"):
            wrap(bytes(16), NONCE, b"secret", b"")


def test_the_chain_depends_on_order_and_text() -> None:
    first = chain_mac(KEY, CHAIN_START, "a")
    assert chain_mac(KEY, first, "b") != chain_mac(KEY, chain_mac(KEY, CHAIN_START, "b"), "a")
    assert first != chain_mac(KEY, CHAIN_START, "a ")
    assert first == hmac.new(KEY, CHAIN_START + hashlib.sha256(b"a").digest(), hashlib.sha256).digest()

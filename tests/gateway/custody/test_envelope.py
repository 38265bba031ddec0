from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.custody.envelope import METHOD_SECRET, Envelope, SecretName, Wrapped
from gateway.custody.kek import InsecureFileKek, KekVersion
from shared.keyderivation import WrongKey, unwrap, wrap
from shared.problems import SecretKeyIntegrity
from shared.secretbytes import SecretBytes

pytestmark = pytest.mark.anyio
VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "golden" / "ifadit" / "key_custody_vectors.json").read_text()
)["wraps"]
NAME = SecretName(METHOD_SECRET, "acme", "key_00000000000000000000000001", 1)
SECRET = bytes(range(32))


@dataclass
class VectorKek:
    """The key of a published vector, with its nonce: what the reference computed must come out to the bit."""

    kek: KekVersion
    key: bytes
    nonce: bytes

    async def primary(self) -> KekVersion:
        return self.kek

    async def wrap(self, kek: KekVersion, secret: SecretBytes, aad: bytes) -> tuple[bytes, bytes]:
        return self.nonce, wrap(self.key, self.nonce, secret.octets, aad)

    async def unwrap(self, kek: KekVersion, nonce: bytes, ciphertext: bytes, aad: bytes) -> SecretBytes:
        try:
            return SecretBytes(unwrap(self.key, nonce, ciphertext, aad))
        except WrongKey:
            raise SecretKeyIntegrity from None

    async def health(self) -> str:
        return "ok"


class IgnorantKek(VectorKek):
    """A provider that drops the associated data."""

    async def wrap(self, kek: KekVersion, secret: SecretBytes, aad: bytes) -> tuple[bytes, bytes]:
        return await super().wrap(kek, secret, b"")

    async def unwrap(self, kek: KekVersion, nonce: bytes, ciphertext: bytes, aad: bytes) -> SecretBytes:
        return await super().unwrap(kek, nonce, ciphertext, b"")


def changed(wrapped: Wrapped, field: str, octets: bytes) -> Wrapped:
    return replace(wrapped, nonce=octets) if field == "nonce" else replace(wrapped, ciphertext=octets)


@pytest.fixture
def envelope(tmp_path: Path) -> Envelope:
    """Two versions of the key-encryption key with the same octets: only the associated data tell them apart."""
    path = tmp_path / "kek.json"
    same = base64.b64encode(bytes(32)).decode()
    path.write_text(json.dumps({"1": same, "2": same}))
    path.chmod(0o400)
    return Envelope(InsecureFileKek(path, environment="dev"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"version {vector['aad_fields'][3]}")
async def test_it_wraps_as_the_published_vectors_do(vector: dict[str, Any]) -> None:
    purpose, tenant, key_id, version, kek_id, kek_version, alg = vector["aad_fields"]
    kek = VectorKek(
        KekVersion(kek_id, kek_version), bytes.fromhex(vector["kek_hex"]), bytes.fromhex(vector["nonce_hex"])
    )
    secret = SecretBytes(bytes.fromhex(vector["plaintext_hex"]))
    wrapped = await Envelope(kek).wrap(SecretName(purpose, tenant, key_id, version), secret)
    assert wrapped.alg == alg
    assert wrapped.ciphertext.hex() == vector["ciphertext_and_tag_hex"]


async def test_what_was_wrapped_opens(envelope: Envelope) -> None:
    wrapped = await envelope.wrap(NAME, SecretBytes(SECRET))
    assert SECRET not in wrapped.ciphertext
    assert await envelope.unwrap(NAME, wrapped) == SecretBytes(SECRET)


@pytest.mark.parametrize(
    "other",
    [{"purpose": "root/lease"}, {"tenant": "other"}, {"key_id": "key_00000000000000000000000002"}, {"version": 2}],
    ids=lambda other: next(iter(other)),
)
async def test_moved_elsewhere_it_does_not_open(envelope: Envelope, other: dict[str, Any]) -> None:
    wrapped = await envelope.wrap(NAME, SecretBytes(SECRET))
    with pytest.raises(SecretKeyIntegrity):
        await envelope.unwrap(replace(NAME, **other), wrapped)


async def test_said_to_be_under_another_version_it_does_not_open(envelope: Envelope) -> None:
    wrapped = await envelope.wrap(NAME, SecretBytes(SECRET))
    with pytest.raises(SecretKeyIntegrity):
        await envelope.unwrap(NAME, replace(wrapped, kek=KekVersion("file", 1)))


async def test_said_to_be_of_another_algorithm_it_does_not_open(envelope: Envelope) -> None:
    wrapped = await envelope.wrap(NAME, SecretBytes(SECRET))
    with pytest.raises(SecretKeyIntegrity):
        await envelope.unwrap(NAME, replace(wrapped, alg="A256GCMSIV"))


async def test_any_flipped_bit_of_nonce_or_ciphertext_shows(envelope: Envelope) -> None:
    wrapped = await envelope.wrap(NAME, SecretBytes(SECRET))
    for field in ("nonce", "ciphertext"):
        octets = getattr(wrapped, field)
        for bit in range(8 * len(octets)):
            flipped = bytearray(octets)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(SecretKeyIntegrity):
                await envelope.unwrap(NAME, changed(wrapped, field, bytes(flipped)))


async def test_a_short_nonce_or_ciphertext_does_not_open(envelope: Envelope) -> None:
    wrapped = await envelope.wrap(NAME, SecretBytes(SECRET))
    for field in ("nonce", "ciphertext"):
        for size in (0, 1, 11, 15):
            with pytest.raises(SecretKeyIntegrity):
                await envelope.unwrap(NAME, changed(wrapped, field, bytes(size)))


class TestSelfTest:
    async def test_passes_with_a_real_provider(self, envelope: Envelope) -> None:
        await envelope.check()

    async def test_finds_a_provider_that_ignores_associated_data(self) -> None:
        with pytest.raises(SecretKeyIntegrity, match="associated data"):
            await Envelope(IgnorantKek(KekVersion("k", 1), bytes(32), bytes(12))).check()


class TestTheHash:
    async def test_comes_back_as_it_went(self, envelope: Envelope) -> None:
        wrapped = await envelope.wrap(NAME, SecretBytes(SECRET))
        assert Wrapped.from_hash(wrapped.to_hash()) == wrapped

    @pytest.mark.parametrize("field", ["v", "alg", "kek_id", "kek_version", "nonce", "ct"])
    async def test_without_a_field_is_damaged(self, envelope: Envelope, field: str) -> None:
        fields = (await envelope.wrap(NAME, SecretBytes(SECRET))).to_hash()
        del fields[field]
        with pytest.raises(SecretKeyIntegrity):
            Wrapped.from_hash(fields)

    @pytest.mark.parametrize(
        "change",
        [{"kek_version": "x"}, {"nonce": "zz"}, {"ct": "0"}, {"v": "2"}, {"extra": "1"}, {"kek_version": "+1"}],
    )
    async def test_with_anything_else_in_it_is_damaged(self, envelope: Envelope, change: dict[str, str]) -> None:
        fields = (await envelope.wrap(NAME, SecretBytes(SECRET))).to_hash()
        with pytest.raises(SecretKeyIntegrity):
            Wrapped.from_hash({**fields, **change})

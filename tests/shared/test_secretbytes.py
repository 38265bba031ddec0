from __future__ import annotations

import copy
import json
import pickle
import time

import pytest

from shared.secretbytes import SecretBytes, wipe

SECRET = bytes(range(32))


class TestShowing:
    def test_it_shows_its_length_only(self) -> None:
        secret = SecretBytes(SECRET)
        assert repr(secret) == str(secret) == f"{secret}" == "<secret 32 B>"

    def test_it_is_neither_pickled_nor_copied_nor_written_as_json(self) -> None:
        secret = SecretBytes(SECRET)
        with pytest.raises(TypeError):
            pickle.dumps(secret)
        with pytest.raises(TypeError):
            copy.copy(secret)
        with pytest.raises(TypeError):
            copy.deepcopy([secret])
        with pytest.raises(TypeError):
            json.dumps({"secret": secret})

    def test_it_cannot_be_hashed(self) -> None:
        secret = SecretBytes(SECRET)
        with pytest.raises(TypeError):
            hash(secret)

    def test_it_equals_another_secret_of_the_same_octets_and_never_plain_bytes(self) -> None:
        assert SecretBytes(SECRET) == SecretBytes(SECRET)
        assert SecretBytes(SECRET) != SecretBytes(SECRET[::-1])
        assert SecretBytes(SECRET) != SECRET


class TestWiping:
    def test_the_buffer_that_was_given_is_overwritten(self) -> None:
        buffer = bytearray(SECRET)
        SecretBytes(buffer).wipe()
        assert buffer == bytes(32)

    def test_a_with_block_wipes_even_when_it_fails(self) -> None:
        buffer = bytearray(SECRET)
        with pytest.raises(RuntimeError), SecretBytes(buffer):
            raise RuntimeError
        assert buffer == bytes(32)

    def test_collecting_it_wipes(self) -> None:
        buffer = bytearray(SECRET)
        secret = SecretBytes(buffer)
        del secret
        assert buffer == bytes(32)

    def test_a_wiped_secret_cannot_be_read(self) -> None:
        secret = SecretBytes(SECRET)
        secret.wipe()
        secret.wipe()
        assert secret.is_wiped
        with pytest.raises(ValueError, match="wiped"):
            _ = secret.octets

    def test_its_time_over_it_wipes_itself(self) -> None:
        buffer = bytearray(SECRET)
        secret = SecretBytes(buffer, valid_s=0.02)
        assert secret.octets == SECRET
        time.sleep(0.03)
        with pytest.raises(ValueError, match="wiped"):
            _ = secret.octets
        assert buffer == bytes(32)

    def test_wipe_keeps_the_length(self) -> None:
        buffer = bytearray(SECRET)
        wipe(buffer)
        assert buffer == bytes(32)

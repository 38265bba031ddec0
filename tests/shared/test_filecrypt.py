from __future__ import annotations

import io
import itertools
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.filecrypt import SEGMENT_BYTES, FileDamaged, SegmentEncryptor, SegmentReader, file_cipher

KEY = bytes(range(32))
HEADER_BYTES = 8
SEALED_BYTES = SEGMENT_BYTES + 16

# Around the borders of segments, where a mistake would be.
lengths = st.one_of(
    st.integers(0, 300),
    st.builds(lambda n, d: max(n * SEGMENT_BYTES + d, 0), st.integers(1, 3), st.integers(-2, 2)),
)


def plain(length: int) -> bytes:
    return (b"%08d" * (length // 8 + 1) % tuple(range(length // 8 + 1)))[:length]


def sealed(data: bytes, *, key: bytes = KEY, file_id: str = "file_a", piece: int = 10_000) -> bytes:
    out: list[bytes] = []
    encryptor = SegmentEncryptor(file_cipher(key, file_id), out.append)
    for start in range(0, len(data), piece):
        encryptor.write(data[start : start + piece])
    encryptor.finish()
    return b"".join(out)


def opened(data: bytes, *, key: bytes = KEY, file_id: str = "file_a") -> bytes:
    with io.BufferedReader(SegmentReader(io.BytesIO(data), file_cipher(key, file_id))) as reader:
        return reader.read()


def segments(data: bytes) -> list[bytes]:
    body = data[HEADER_BYTES:]
    return [body[start : start + SEALED_BYTES] for start in range(0, len(body), SEALED_BYTES)]


class TestRoundTrip:
    @settings(max_examples=40, deadline=None)
    @given(length=lengths, piece=st.integers(700, 200_000))
    def test_what_was_written_is_read_back_whatever_the_pieces(self, length: int, piece: int) -> None:
        assert opened(sealed(plain(length), piece=piece)) == plain(length)

    @settings(max_examples=30, deadline=None)
    @given(length=lengths, data=st.data())
    def test_seeks_and_reads_are_those_of_the_plain_file(self, length: int, data: st.DataObject) -> None:
        expected = io.BytesIO(plain(length))
        reader = io.BufferedReader(SegmentReader(io.BytesIO(sealed(plain(length))), file_cipher(KEY, "file_a")))
        for _ in range(12):
            offset = data.draw(st.integers(0, length + 20))
            whence = data.draw(st.sampled_from((io.SEEK_SET, io.SEEK_END)))
            step = offset if whence == io.SEEK_SET else -min(offset, length)
            assert reader.seek(step, whence) == expected.seek(step, whence)
            count = data.draw(st.one_of(st.integers(0, 200), st.integers(0, 2 * SEGMENT_BYTES)))
            assert reader.read(count) == expected.read(count)
            assert reader.tell() == expected.tell()

    def test_a_relative_seek_starts_where_the_last_read_ended(self) -> None:
        reader = SegmentReader(io.BytesIO(sealed(plain(200_000))), file_cipher(KEY, "file_a"))
        assert reader.read(10) == plain(200_000)[:10]
        assert reader.seek(100_000, io.SEEK_CUR) == 100_010
        assert reader.read(5) == plain(200_000)[100_010:100_015]
        with pytest.raises(ValueError, match="-1"):
            reader.seek(-1)

    def test_a_byte_costs_what_the_format_says(self) -> None:
        for length in (0, 1, SEGMENT_BYTES, SEGMENT_BYTES + 1):
            count = max(1, -(-length // SEGMENT_BYTES))
            assert len(sealed(plain(length))) == HEADER_BYTES + length + 16 * count

    def test_the_same_bytes_are_never_sealed_alike(self) -> None:
        first, second = sealed(bytes(1000)), sealed(bytes(1000))
        assert first[:HEADER_BYTES] != second[:HEADER_BYTES]
        assert first[HEADER_BYTES:] != second[HEADER_BYTES:]

    def test_closing_the_reader_closes_the_file(self) -> None:
        raw = io.BytesIO(sealed(b"x"))
        SegmentReader(raw, file_cipher(KEY, "file_a")).close()
        assert raw.closed


class TestDamage:
    @settings(max_examples=60, deadline=None)
    @given(length=lengths, data=st.data())
    def test_no_flipped_bit_goes_unnoticed(self, length: int, data: st.DataObject) -> None:
        damaged = bytearray(sealed(plain(length)))
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(FileDamaged):
            opened(bytes(damaged))

    @settings(max_examples=60, deadline=None)
    @given(length=lengths, data=st.data())
    def test_no_truncation_goes_unnoticed_and_not_a_byte_is_given_out(self, length: int, data: st.DataObject) -> None:
        whole = sealed(plain(length))
        borders = [HEADER_BYTES + n * SEALED_BYTES for n in range(4)]
        cuts = st.one_of(st.integers(0, len(whole) - 1), st.sampled_from(borders))
        cut = min(data.draw(cuts), len(whole) - 1)
        with pytest.raises(FileDamaged):
            SegmentReader(io.BytesIO(whole[:cut]), file_cipher(KEY, "file_a"))

    @settings(max_examples=20, deadline=None)
    @given(tail=st.binary(min_size=1, max_size=40))
    def test_no_added_byte_goes_unnoticed(self, tail: bytes) -> None:
        for length in (0, 100, SEGMENT_BYTES, SEGMENT_BYTES + 5):
            with pytest.raises(FileDamaged):
                SegmentReader(io.BytesIO(sealed(plain(length)) + tail), file_cipher(KEY, "file_a"))

    def test_no_other_order_of_segments_is_read(self) -> None:
        whole = sealed(plain(3 * SEGMENT_BYTES + 70))
        parts = segments(whole)
        for order in itertools.permutations(range(4)):
            shuffled = whole[:HEADER_BYTES] + b"".join(parts[i] for i in order)
            if order == (0, 1, 2, 3):
                assert opened(shuffled) == plain(3 * SEGMENT_BYTES + 70)
            else:
                with pytest.raises(FileDamaged):
                    opened(shuffled)

    def test_a_segment_left_out_or_repeated_is_noticed(self) -> None:
        whole = sealed(plain(3 * SEGMENT_BYTES))
        a, b, c = segments(whole)
        for parts in ([a, c], [b, c], [a, b], [a, a, b, c], [a, b, b, c], [a, b, c, c]):
            with pytest.raises(FileDamaged):
                opened(whole[:HEADER_BYTES] + b"".join(parts))

    def test_a_segment_of_another_file_under_the_same_lease_is_noticed(self) -> None:
        mine, other = sealed(plain(2 * SEGMENT_BYTES)), sealed(plain(2 * SEGMENT_BYTES), file_id="file_b")
        mixed = mine[: HEADER_BYTES + SEALED_BYTES] + segments(other)[1]
        with pytest.raises(FileDamaged):
            opened(mixed)
        with pytest.raises(FileDamaged):
            opened(other)

    def test_a_segment_of_an_earlier_writing_of_the_same_file_is_noticed(self) -> None:
        first, second = sealed(plain(2 * SEGMENT_BYTES)), sealed(plain(2 * SEGMENT_BYTES))
        with pytest.raises(FileDamaged):
            opened(first[:HEADER_BYTES] + segments(second)[0] + segments(first)[1])

    def test_another_key_opens_nothing_and_the_error_says_nothing(self) -> None:
        whole = sealed(plain(1000))
        with pytest.raises(FileDamaged) as wrong_key:
            opened(whole, key=secrets.token_bytes(32))
        with pytest.raises(FileDamaged) as flipped:
            opened(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert wrong_key.value.body() == flipped.value.body()

    def test_a_key_of_another_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            file_cipher(b"short", "file_a")


def test_memory_stays_at_one_segment_for_a_file_of_any_length() -> None:
    held: list[int] = []
    encryptor = SegmentEncryptor(file_cipher(KEY, "file_a"), lambda part: held.append(len(part)))
    encryptor.write(bytes(5 * SEGMENT_BYTES))
    assert held == [HEADER_BYTES, *[SEALED_BYTES] * 4]
    encryptor.finish()
    assert held[-1] == SEALED_BYTES

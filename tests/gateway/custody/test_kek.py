from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from gateway.custody.kek import InsecureFileKek, KekVersion
from shared.problems import KekUnavailable, SecretKeyIntegrity
from shared.secretbytes import SecretBytes

pytestmark = pytest.mark.anyio
SECRET = bytes(range(32))


def written(path: Path, content: object, mode: int = 0o400) -> Path:
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content))
    path.chmod(mode)
    return path


def key(fill: int) -> str:
    return base64.b64encode(bytes([fill]) * 32).decode()


class TestTheFile:
    def test_a_new_one_is_readable_by_its_owner_alone_and_never_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "kek.json"
        InsecureFileKek.create(path, environment="dev")
        assert path.stat().st_mode & 0o777 == 0o400
        assert len(base64.b64decode(json.loads(path.read_text())["1"])) == 32
        with pytest.raises(FileExistsError):
            InsecureFileKek.create(path, environment="dev")

    def test_production_refuses_it(self, tmp_path: Path) -> None:
        path = written(tmp_path / "kek.json", {"1": key(1)})
        with pytest.raises(ValueError, match="production"):
            InsecureFileKek(path, environment="production")

    @pytest.mark.parametrize("mode", [0o600, 0o440, 0o404, 0o644, 0o500])
    def test_any_other_mode_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = written(tmp_path / "kek.json", {"1": key(1)}, mode)
        with pytest.raises(KekUnavailable, match="0400"):
            InsecureFileKek(path, environment="dev")

    def test_another_owner_is_refused(self, tmp_path: Path) -> None:
        path = written(tmp_path / "kek.json", {"1": key(1)})
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(path, 12345, -1)
        with pytest.raises(KekUnavailable, match="belong"):
            InsecureFileKek(path, environment="dev")

    def test_a_link_is_refused(self, tmp_path: Path) -> None:
        target = written(tmp_path / "elsewhere.json", {"1": key(1)})
        (tmp_path / "kek.json").symlink_to(target)
        with pytest.raises(KekUnavailable):
            InsecureFileKek(tmp_path / "kek.json", environment="dev")

    @pytest.mark.parametrize(
        "content",
        [
            {},
            [],
            "key",
            {"1": "not base64!"},
            {"1": base64.b64encode(bytes(31)).decode()},
            {"0": key(1)},
            {"one": key(1)},
            {"1": 5},
        ],
    )
    def test_any_other_content_is_refused(self, tmp_path: Path, content: object) -> None:
        path = written(tmp_path / "kek.json", content)
        with pytest.raises(KekUnavailable):
            InsecureFileKek(path, environment="dev")

    async def test_taken_away_it_locks_at_once_and_opens_again_when_it_is_back(self, tmp_path: Path) -> None:
        path = written(tmp_path / "kek.json", {"1": key(1)})
        kek = InsecureFileKek(path, environment="dev")
        nonce, ciphertext = await kek.wrap(KekVersion("file", 1), SecretBytes(SECRET), b"aad")
        path.rename(tmp_path / "away.json")
        assert await kek.health() == "down"
        with pytest.raises(KekUnavailable):
            await kek.unwrap(KekVersion("file", 1), nonce, ciphertext, b"aad")
        (tmp_path / "away.json").rename(path)
        assert await kek.health() == "ok"
        assert await kek.unwrap(KekVersion("file", 1), nonce, ciphertext, b"aad") == SecretBytes(SECRET)


class TestVersions:
    async def test_the_newest_wraps_and_all_unwrap(self, tmp_path: Path) -> None:
        path = written(tmp_path / "kek.json", {"1": key(1)})
        kek = InsecureFileKek(path, environment="dev")
        old = await kek.primary()
        nonce, ciphertext = await kek.wrap(old, SecretBytes(SECRET), b"aad")
        written(path, {"1": key(1), "10": key(10), "9": key(9)})
        assert await kek.primary() == KekVersion("file", 10)
        assert await kek.unwrap(old, nonce, ciphertext, b"aad") == SecretBytes(SECRET)

    async def test_a_version_that_is_gone_is_named(self, tmp_path: Path) -> None:
        kek = InsecureFileKek(written(tmp_path / "kek.json", {"2": key(2)}), environment="dev")
        with pytest.raises(KekUnavailable, match="Version 1 "):
            await kek.unwrap(KekVersion("file", 1), bytes(12), bytes(48), b"aad")

    async def test_a_secret_of_another_provider_is_not_tried(self, tmp_path: Path) -> None:
        kek = InsecureFileKek(written(tmp_path / "kek.json", {"1": key(1)}), environment="dev")
        nonce, ciphertext = await kek.wrap(KekVersion("file", 1), SecretBytes(SECRET), b"aad")
        with pytest.raises(SecretKeyIntegrity):
            await kek.unwrap(KekVersion("vault", 1), nonce, ciphertext, b"aad")

    async def test_no_two_wraps_share_a_nonce(self, tmp_path: Path) -> None:
        kek = InsecureFileKek(written(tmp_path / "kek.json", {"1": key(1)}), environment="dev")
        secret = SecretBytes(SECRET)
        nonces = {(await kek.wrap(KekVersion("file", 1), secret, b""))[0] for _ in range(2000)}
        assert len(nonces) == 2000

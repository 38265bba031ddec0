"""What the demo shows."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET

from deploy.local import gallery
from deploy.local.exhibit import Exhibit


def exhibit() -> Exhibit:
    shown = Exhibit("ifadit", title="Faces & <keys>")
    with shown.timed("anonymize"):
        pass
    shown.check("it is another person", True, "cosine 0.10")
    shown.picture('before "&" after', b"\x89PNG", "image/png")
    return shown


def test_the_page_needs_no_other_file_and_says_everything() -> None:
    page = gallery.page([exhibit()], "Made today.")
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert base64.b64encode(b"\x89PNG").decode() in page
    for text in ("Faces &amp; &lt;keys&gt;", "it is another person", "cosine 0.10", "anonymize", "✓", "Made today."):
        assert text in page


def test_the_page_is_well_formed() -> None:
    page = gallery.page([exhibit(), exhibit()], "Made today.")
    body = page.partition("<body>")[2].rpartition("</body>")[0]
    sections = ET.fromstring(re.sub(r"(<img[^>]*)>", r"\1/>", f"<body>{body}</body>")).findall("section")  # noqa: S314
    assert len(sections) == 2


def test_a_failed_check_shows_and_counts() -> None:
    assert exhibit().is_right
    shown = exhibit()
    shown.check("the record is valid", False)
    assert not shown.is_right
    assert "✗" in gallery.page([shown], "")


def test_a_method_without_a_check_is_not_right() -> None:
    assert not Exhibit("ifadit").is_right

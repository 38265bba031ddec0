"""What callers of DiT-SR and TAD-SR send and get: the fields and limits that both have. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared import imageheader
from shared.problems import ImageTooLarge, InvalidRequest, Problem
from shared.service import Archive, Image, Request, Response

SCALE = 4
# Four-fold, what a picture may have anywhere here: 40 million pixels, 20,000 a side.
MAX_UPSCALE_PIXELS = imageheader.MAX_PIXELS // SCALE**2
MAX_UPSCALE_SIDE_PX = imageheader.MAX_SIDE_PX // SCALE
MAX_WEBP_SIDE_PX = 16_383

OutputFormat = Literal["png", "webp", "jpeg"]
MEDIA_TYPES: dict[OutputFormat, str] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}


class ModelUnsuitable(Problem):
    """The model was made for another operation of the method. `operation` names it."""

    code, status, title = "model_unsuitable", 422, "The model does not serve this operation."


class RestorationRequest(Request):
    """Of an operation that makes pictures anew."""

    seed: int | None = Field(None, ge=0, lt=2**63, description="Same seed, same picture. Drawn and returned if absent.")
    output_format: OutputFormat = Field("png", description="`png` and `webp` are lossless.")


def check_upscale(size: tuple[int, int], output_format: OutputFormat) -> None:
    """Raise `ImageTooLarge` for a picture (width, height) whose enlargement nobody could open."""
    width, height = size
    said = f"The picture is {width} x {height} px; to be enlarged it may have"
    if width * height > MAX_UPSCALE_PIXELS:
        raise ImageTooLarge(f"{said} {MAX_UPSCALE_PIXELS} in all.", limit_px=MAX_UPSCALE_PIXELS)
    if max(width, height) > MAX_UPSCALE_SIDE_PX:
        raise ImageTooLarge(f"{said} {MAX_UPSCALE_SIDE_PX} a side.", limit_px=MAX_UPSCALE_SIDE_PX)
    _check_output(size, output_format, SCALE)


def _check_output(size: tuple[int, int], output_format: OutputFormat, scale: int) -> None:
    if output_format == "webp" and scale * max(size) > MAX_WEBP_SIDE_PX:
        limit = MAX_WEBP_SIDE_PX // scale
        raise ImageTooLarge(f"For a result in WebP a side may have {limit} px.", limit_px=limit)


class UpscaleRequest(RestorationRequest):
    """Of an operation that enlarges."""

    image: Image | None = Field(
        None,
        description=f"Photograph to enlarge; upright after EXIF, at most {MAX_UPSCALE_PIXELS:,} px in all and "
        f"{MAX_UPSCALE_SIDE_PX:,} a side.",
    )
    archive: Archive | None = Field(None, description="Or a zip or tar of such photographs.")

    def check(self) -> None:
        if (self.image is None) == (self.archive is None):
            raise InvalidRequest(
                "Send an image or an archive.",
                errors=[{"place": "image", "message": "either image or archive", "kind": "exclusive"}],
            )
        if self.image is not None:
            check_upscale(self.image.size, self.output_format)

    @property
    def company(self) -> object:
        """What must be equal for requests to be computed together: the size, and an archive is alone."""
        return self.image.size if self.image is not None else self.archive and self.archive.file


class RestoreRequest(RestorationRequest):
    """Of an operation that keeps the size."""

    image: Image = Field(description="Portrait to restore; upright after EXIF.")

    def check(self) -> None:
        _check_output(self.image.size, self.output_format, 1)


class Restored(Response):
    """A picture, and what it takes to get it again."""

    image: Image
    """Gray and alpha as in the input, 8 bits a sample, sRGB."""
    model: str
    seed: int
    steps: int
    """Evaluations of the denoiser for each tile."""
    tiles: int
    """How many the picture was taken apart into."""


class Upscaled(Response):
    """An enlarged picture, or an archive of them, and what it takes to get it again."""

    image: Image | None
    """Four times as wide and high; gray and alpha as in the input, 8 bits a sample, sRGB. Null for an archive."""
    archive: Archive | None
    """For an archive: the pictures, and `results.jsonl` with one line each. Null for a picture."""
    model: str
    seed: int
    """Each picture of an archive has one of its own, made from this and its place; its line says which."""
    steps: int
    """Evaluations of the denoiser for each tile."""
    tiles: int | None
    """How many the picture was taken apart into; null for an archive."""

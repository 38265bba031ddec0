"""FFHQ alignment: the square around a face that the networks see, from 68 landmarks (ifadit.md 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Quad:
    """A rotated square in the photograph, in pixels."""

    center: Points
    """(2,) x, y"""
    x: Points
    """(2,) from the centre to the middle of the right side"""
    y: Points
    """(2,) from the centre to the middle of the bottom side"""

    @property
    def corners(self) -> Points:
        """(4, 2): top left, bottom left, bottom right, top right"""
        c, x, y = self.center, self.x, self.y
        return np.stack([c - x - y, c - x + y, c + x + y, c + x - y])

    @property
    def size(self) -> float:
        """Side in pixels."""
        return 2 * float(np.hypot(*self.x))

    def shrink(self, output_size: int) -> int:
        """By which whole number the reference shrinks the photograph first, for pictures of `output_size` pixels."""
        return math.floor(self.size / output_size * 0.5)

    @property
    def border(self) -> int:
        """Pixels that the reference leaves around the square when it crops."""
        return max(round(self.size * 0.1), 3)


def ffhq_quad(landmarks: Points) -> Quad:
    """The square that FFHQ's alignment takes.

    landmarks  (68, 2)  x, y in pixels; right eye (36-41), left eye (42-47) and mouth corners (48, 54) are read
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (68, 2):
        raise ValueError(f"68 landmarks of x and y are needed, not {points.shape}")
    eye_a, eye_b = points[36:42].mean(0), points[42:48].mean(0)
    eyes, mouth = (eye_a + eye_b) * 0.5, (points[48] + points[54]) * 0.5
    eye_to_eye, eye_to_mouth = eye_b - eye_a, mouth - eyes
    x = eye_to_eye - eye_to_mouth[::-1] * [-1, 1]
    if not (length := float(np.hypot(*x))):
        raise ValueError("the eyes and the mouth coincide: these landmarks have no direction")
    x *= max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8) / length
    return Quad(center=eyes + eye_to_mouth * 0.1, x=x, y=x[::-1] * [-1, 1])

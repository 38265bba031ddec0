"""Who says whether two faces are one person: the identity teacher, and a second encoder that nothing was trained on."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.ifadit.augmentation import to_uint8
from services.ifadit.teachers import IdentityTeacher
from shared.faces import aligned_template, similarity, warp_crop

# Where the five points lie in a chip of dlib (150 px, padding 0.25): means over 120 validation faces, cut by dlib itsel
DLIB_CHIP_PX = 150
DLIB_POINTS = np.array([[47.8, 45.9], [102.5, 45.6], [74.2, 78.1], [50.9, 103.5], [99.4, 103.4]])
DLIB_MODEL = "dlib_face_recognition_resnet_model_v1.dat"


class Judge(Protocol):
    """An identity encoder that judges."""

    def __call__(self, x: Tensor) -> Tensor:
        """Aligned faces (B, 3, S, S), RGB 0..1 -> embeddings (B, D) of unit length."""


class TeacherJudge:
    """The identity teacher, on picture and mirrored picture. It took part in the training."""

    name = "teacher"

    def __init__(self, teacher: IdentityTeacher) -> None:
        self.teacher = teacher

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self.teacher(chunk, mirror=True) for chunk in x.split(64)])


class DlibJudge:
    """dlib's face recognition ResNet (Davis King, 2017; about 3 million faces of other sets). It took part in nothing.

    Its descriptors lie in a narrow cone, so they are taken from the mean of validation faces before cosines are formed.
    Raises ModuleNotFoundError, with what to install, where its packages are missing.
    """

    name = "dlib"

    def __init__(self, centre_on: Tensor) -> None:
        spec = importlib.util.find_spec("face_recognition_models")
        if spec is None or importlib.util.find_spec("dlib") is None:
            raise ModuleNotFoundError("The second judge needs `pip install dlib-bin face-recognition-models`.")
        folder = Path((spec.submodule_search_locations or [""])[0]) / "models"
        dlib: Any = importlib.import_module("dlib")
        self.network = dlib.face_recognition_model_v1(str(folder / DLIB_MODEL))
        self.mean = self.descriptors(centre_on).mean(0)

    def descriptors(self, x: Tensor) -> Tensor:
        """dlib's own (B, 128), not centred."""
        matrix = similarity(aligned_template(x.shape[2]), DLIB_POINTS)
        chips = [warp_crop(face, matrix, DLIB_CHIP_PX) for face in to_uint8(x)]
        return torch.tensor(np.array([self.network.compute_face_descriptor(chip) for chip in chips])).float()

    def __call__(self, x: Tensor) -> Tensor:
        return F.normalize(self.descriptors(x) - self.mean, dim=1)

"""How far a picture's face is from its reference's, by a model that lies in a package and runs here.

A face becomes 128 numbers, and two faces are as far apart as these are (dlib's `face_recognition_model_v1`, whose
authors take less than 0.6 for photos of one person). That is a measure by which to look through pictures, and no claim
of who is shown. The numbers of a face are personal data of a special kind: they stay in memory, and only the distance
is recorded.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.seeing import flat, orientation, upright

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FAR = 0.6
"""dlib takes faces that are further apart than this for those of different people (dlib, face_recognition.py)."""
INSTALL = "pip install 'ideogram-pipeline[faces]'"
_SIDE = 640
"""Pixels of the longer side at which faces are looked for: those from about 80 pixels wide are found."""


class Faces:
    """Finds the face that a picture shows most surely, and measures how far it is from that in its references."""

    def __init__(self) -> None:
        """Load the models, which takes 35 MB of memory.

        Raises:
            ConfigurationError: the extra `faces` is not installed.
        """
        # The package that carries the models is only looked up: importing it needs a setuptools that is gone.
        models_package = find_spec("face_recognition_models")
        if find_spec("dlib") is None or models_package is None or models_package.origin is None:
            raise ConfigurationError(f"IDEOGRAM_FACES needs dlib and its models: {INSTALL}.")
        import dlib

        models = Path(models_package.origin).parent / "models"
        self._detect = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self._describe = dlib.face_recognition_model_v1(
            str(models / "dlib_face_recognition_resnet_model_v1.dat")
        )
        self._references: dict[str, NDArray[np.float64] | None] = {}
        self._one_at_a_time = threading.Lock()

    def distance(self, picture: bytes, references: Mapping[str, Callable[[], bytes]]) -> float | None:
        """Return how far a picture's face is from the nearest of its references' faces, to four digits.

        `references` gives their bytes by the SHA-256 of these; each is looked at once. None where the picture, or every
        reference, shows no face that is found; a reference that is no longer there shows none.
        """
        import numpy as np

        with self._one_at_a_time:
            for sha256, read in references.items():
                if sha256 not in self._references:
                    self._references[sha256] = self._face_in(read)
            known = [face for sha256 in references if (face := self._references[sha256]) is not None]
            face = self._face(picture) if known else None
        if face is None:
            return None
        return round(min(float(np.linalg.norm(face - one)) for one in known), 4)

    def _face_in(self, read: Callable[[], bytes]) -> NDArray[np.float64] | None:
        try:
            return self._face(read())
        except FileNotFoundError:
            return None

    def _face(self, picture: bytes) -> NDArray[np.float64] | None:
        import numpy as np
        from PIL import Image

        try:
            opened = Image.open(io.BytesIO(picture))
            image = upright(flat(opened), orientation(opened))
        except (
            OSError,
            SyntaxError,
            ValueError,
        ):  # as Pillow's decoders raise; measuring never costs a picture
            return None
        image.thumbnail((_SIDE, _SIDE))
        pixels = np.array(image)
        found, scores, _ = self._detect.run(pixels, 0, 0.0)
        if not found:
            return None
        surest = found[int(np.argmax(scores))]
        return np.array(self._describe.compute_face_descriptor(pixels, self._landmarks(pixels, surest)))

"""Proving that an ONNX file prepares images as those were that its accuracy was measured with."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from recal.data.images import ArraySource
from recal.errors import InputError, VerificationError
from recal.export.subject import Subject
from recal.networks.spec import ModelSpec
from recal.onnx_file.preparing import PREPARED, preparation_alone
from recal.onnx_file.record import PreparationProof
from recal.onnx_file.session import OnnxNetwork, filled, open_session, run_session
from recal.policies.prepared import PreparedImages

LARGEST_BEYOND = 0.01
LARGEST_CHANGED = 0.01

# height and width of further shapes, relative to the network's side, and pixels added to both
SHAPES = (
    (1, 1, 0), (2, 2, 0), (1, 2, 1), (3, 1, -1), (0.3, 0.4, 0), (4, 3, 1), (1.5, 1, 0), (1, 1.1, 0),
    (0, 0, 1), (0, 1, 1), (5, 0.5, 2), (0.9, 2.2, 0),
)  # fmt: skip


def prove_preparation(
    model: bytes, subject: Subject, pictures: Iterable[NDArray[np.uint8]]
) -> PreparationProof:
    """Compare images that a serialised model prepares with the same images prepared by Pillow.

    The levels before normalisation are compared, and the classes that the file predicts. The first
    images are compared in other shapes too: squares, wide and tall ones, smaller and larger than
    the network's input.

    Args:
        model: The ONNX model, of the form `preprocess`.
        subject: The variant in it, or the first of several.
        pictures: Decoded images of any size, each uint8 (H, W, C).

    Raises:
        VerificationError: In one image more than 1 % of the levels differ by more than one, or
            more than 1 % of the predictions change (and more than one).
        InputError: There are no images, or their channels are not the network's.
    """
    where, spec = subject.where, subject.spec
    network = OnnxNetwork(model)
    front = open_session(
        preparation_alone(onnx.load_model_from_string(model)).SerializeToString(), where
    )
    images, differing, changed, largest, largest_in_shapes, beyond = 0, 0, 0, 0, 0, 0.0
    for picture in pictures:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != spec.channels:
            raise InputError(
                f"{where}: expected pictures uint8 (H, W, {spec.channels}), got {picture.dtype} "
                f"{picture.shape}."
            )
        stretched = [
            _stretched(picture, spec.size, *shape) for shape in SHAPES[images : images + 1]
        ]
        for image in (picture, *stretched):
            own = prepared_by_pillow(spec, image)
            given = filled(image[None], network.batch or 1)
            found = run_session(front, {"input": given})[0][0].transpose(1, 2, 0)
            off = np.abs(found.astype(np.int16) - own[..., :: spec.normalisation.step])
            far, most = float((off > 1).mean()), int(off.max())
            if not far <= LARGEST_BEYOND:
                height, width = image.shape[:2]
                raise VerificationError(
                    f"{where}: '{PREPARED}': expected at most {LARGEST_BEYOND:.0%} of the levels "
                    f"more than one from Pillow's, got {far:.2%} (up to {most} levels) in an image "
                    f"of {width}x{height}."
                )
            beyond = max(beyond, far)
            if image is picture:
                largest, differing = max(largest, most), differing + int(np.count_nonzero(off))
                classes = {int(network.outputs(i[None]).argmax()) for i in (image, own)}
                changed += len(classes) - 1
            else:
                largest_in_shapes = max(largest_in_shapes, most)
        images += 1
    if not images:
        raise InputError(f"{where}: expected pictures to prepare, got none.")
    if changed > max(1, LARGEST_CHANGED * images):
        raise VerificationError(
            f"{where}: expected at most {LARGEST_CHANGED:.0%} of the predictions to change with "
            f"the preparation in the file, got {changed:,} of {images:,}."
        )
    return PreparationProof(
        images=images, shapes=min(images, len(SHAPES)), largest=largest,
        largest_in_shapes=largest_in_shapes, differing=differing / (images * own.size),
        beyond=beyond, changed=changed / images,
    )  # fmt: skip


def prepared_by_pillow(spec: ModelSpec, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image as the evaluation prepares it where it is a set of its own."""
    alone = ArraySource(Path("picture"), image[None], None)
    return PreparedImages(alone, spec.clean_policy, 0, spec.preparation).read(0)


def _stretched(
    picture: NDArray[np.uint8], size: int, height: float, width: float, added: int
) -> NDArray[np.uint8]:
    """Return a picture in another shape, given relative to a side, and in pixels added to it."""
    sides = [max(1, round(size * share) + added) for share in (width, height)]
    planes = [Image.fromarray(plane) for plane in np.moveaxis(picture, 2, 0)]
    smooth = Image.Resampling.BILINEAR
    return np.stack([np.asarray(plane.resize(sides, smooth)) for plane in planes], axis=2)

"""`recal calibrate` where its argument is an ONNX file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from pathlib import Path


def recalibrate_file(
    path: Path,
    *,
    mode: str,
    policy: Path | None,
    data: Path | None,
    output: Path | None,
    asked: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Re-estimate the statistics inside a patchable ONNX file; see `recal.deploy.recalibrate`."""
    from pathlib import Path

    from recal.bn.variant_file import write_variant
    from recal.cli.console import console, messages, progress_bar
    from recal.cli.precision import doubts, precision
    from recal.data.draws import DEFAULT_SAMPLES
    from recal.data.finding import find_images
    from recal.data.policies import load_family, load_policy, read_policy
    from recal.deploy.model_file import read_model
    from recal.deploy.predict import network_spec
    from recal.deploy.recalibrate import recalibrate
    from recal.deploy.runtime import OnnxNetwork
    from recal.errors import UsageError

    source = click.get_current_context().get_parameter_source("estimator")
    if options["affine"] is not None:
        raise UsageError("--affine: an ONNX file holds one branch only. Leave it out.")
    if options["estimator"] != "consistent" and source is not ParameterSource.DEFAULT:
        raise UsageError("--estimator: in an ONNX file only 'consistent' can be estimated.")
    model = read_model(path)
    spec = network_spec(OnnxNetwork(path), asked, str(path))
    names = load_family(spec.family).folders.get(spec.classes, ())
    images = find_images(
        data, names, "train", classes=None, what=f"calibration images ({spec.family})"
    )
    chosen = load_policy(spec.family, mode) if policy is None else read_policy(policy)
    with progress_bar("images") as bar:
        variant = recalibrate(
            model, images, spec, chosen, samples=options["samples"] or DEFAULT_SAMPLES,
            batch_size=options["batch_size"], seed=options["seed"], where=str(path),
            min_images=options["min_images"], skip_broken=options["skip_broken"], progress=bar,
        )  # fmt: skip
    output = output or Path(f"{path.stem}-{chosen.name}.safetensors")
    write_variant(variant, output)
    for doubt in doubts(variant.record["statistics"]):
        messages.print(f"warning: {doubt}")
    console.print(
        f"Statistics of {len(variant.tensors) // 4} layers from "
        f"{variant.record['statistics']['images']:,} images (consistent, by ONNX Runtime)."
    )
    console.print(precision(variant.record["statistics"]))
    console.print(f"Wrote {output}. Next: recal patch {path} {output}")

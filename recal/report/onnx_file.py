"""ONNX files as tables, sentences and rows: proofs, timings and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recal.report.blocks import Block, Grid

if TYPE_CHECKING:
    from recal.export.forms import Evidence
    from recal.export.verify import Comparison
    from recal.onnx_file.bench import Timing
    from recal.onnx_file.predict import Prediction
    from recal.onnx_file.record import Proof


def export_blocks(evidence: Evidence, images: str) -> list[Block]:
    """Return how an exported file compares with PyTorch, on images called `images`."""
    return [*_of_network(evidence, images), *_of_preparation(evidence, images)]


def _of_preparation(evidence: Evidence, images: str) -> list[Block]:
    found = evidence.preparation
    if found is None:
        return []
    return [
        f"Prepared in the file, on {images}: {found.differing:.4%} of the levels differ from "
        f"Pillow's, by at most {found.largest} (in {found.shapes} other shapes by at most "
        f"{found.largest_in_shapes}); {found.changed:.2%} of the predictions change."
    ]


def _of_network(evidence: Evidence, images: str) -> list[Block]:
    made = evidence.int8
    if made is not None:
        proof, used = made.proof, made.range_images
        blocks: list[Block] = [f"Ranges of {used.images} '{used.policy}' images."]
        if proof.accuracies:
            shown = ", ".join(f"{name} {value:.2%}" for name, value in proof.accuracies.items())
            blocks.append(
                f"Accuracy on {images}: {shown}; lost {proof.drop:.2%} ± {proof.drop_error:.2%} "
                f"(at most {made.max_drop:.2%})."
            )
        return [
            *blocks,
            f"Same prediction as in float32 on {proof.agreement:.2%} of {images}; outputs off by "
            f"{proof.error:.1%} of their spread. Folded, in float32: largest difference of a logit "
            f"{evidence.proof.difference:.1e}.",
            *(
                f"On the way to branch '{name}' (0 the variant, 1 the branch): {way:.2f}."
                for name, way in proof.rivals.items()
            ),
        ]
    if len(evidence.proofs) > 1:
        return [
            f"variant {number}, {name}: on {images} within {proof.difference:.1e} (at most "
            f"{proof.tolerance:.1e}); at least "
            f"{min(rival.distance for rival in proof.rivals.values()):.1e} from the others."
            for number, (name, proof) in enumerate(evidence.proofs.items())
        ]
    return [
        f"Compared in ONNX Runtime on {images}: {_difference(evidence.proof)}",
        *(
            f"Largest difference from branch '{name}': {rival.distance:.1e}."
            for name, rival in evidence.proof.rivals.items()
        ),
    ]


def verify_blocks(found: Comparison, checkpoint: str, images: str) -> list[Block]:
    """Return how a file compares with its checkpoint and variants, on images called `images`."""
    same = "the same bytes when exported again." if found.same_bytes else (
        "the same tensors; bytes differ, because the versions of the libraries do."
    )  # fmt: skip
    blocks: list[Block] = [f"{found.record.title} of {checkpoint}: {same}"]
    made = found.evidence.int8
    if made is not None:
        lost, used = made.proof, made.range_images
        made_with = f"{used.images} '{used.policy}' images"
        drop = f"{lost.drop:.2%} ± {lost.drop_error:.2%} of accuracy lost; "
        blocks += [
            f"int8: ranges are those of the {made_with} that it records."
            if found.same_ranges
            else f"int8: ranges as recorded; --data with its {made_with} recomputes them.",
            f"int8: the same prediction as in float32 on {lost.agreement:.2%} of "
            f"{lost.images:,} images; {drop if lost.accuracies else ''}outputs off by "
            f"{lost.error:.1%} of their spread. Its float32 form:",
        ]
    for name, proof in found.evidence.proofs.items():
        blocks.append(f"{name}: on {images}: {_difference(proof)}")
        blocks += [
            f"From '{other}': {rival.distance:.1e}, the variant {rival.expected:.1e}."
            for other, rival in proof.rivals.items()
        ]
    return [*blocks, *_of_preparation(found.evidence, images)]


def evidence_rows(evidence: Evidence) -> list[dict[str, object]]:
    """Return one row for each variant in a file, for CSV."""
    names = ("images", "difference", "tolerance", "hostile_inputs", "hostile_difference")
    return [
        {"variant": name, **{key: getattr(proof, key) for key in names}}
        for name, proof in evidence.proofs.items()
    ]


def doubts(evidence: Evidence) -> list[str]:
    """Return warnings about branches that the images do not tell from the variant."""
    proofs = [evidence.int8.proof] if evidence.int8 else list(evidence.proofs.values())
    return [
        f"no image tells the variant from branch '{name}'."
        for proof in proofs
        for name in proof.indistinct
    ]


def _difference(proof: Proof) -> str:
    bound = ""
    if proof.reference == "float32":
        bound = ", against PyTorch in float32, because the network does not run in float64"
    return (
        f"largest difference of a logit {proof.difference:.1e} (at most {proof.tolerance:.1e}); on "
        f"{proof.hostile_inputs} hostile inputs {proof.hostile_difference:.1e} of the largest "
        f"logit{bound}."
    )


def timing_blocks(timings: Sequence[Timing]) -> list[Block]:
    """Return one table of timings."""
    rows = [
        (
            str(t.model), str(t.threads or "all"), str(t.batch), f"{t.p50:.2f}", f"{t.p90:.2f}",
            f"{t.p99:.2f}", f"{t.throughput:,.0f}", f"{t.ratio:.2f}",
        )
        for t in timings
    ]  # fmt: skip
    header = ("model", "threads", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "ratio")
    return [Grid("", header, tuple(rows))]


def prediction_sentence(prediction: Prediction) -> str:
    """Return the classes of an image, the most probable first."""
    pairs = zip(prediction.names, prediction.probabilities, strict=True)
    return f"{prediction.image}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in pairs)


def prediction_rows(prediction: Prediction) -> list[dict[str, object]]:
    """Return one row for each class of an image, the most probable first."""
    return [
        {"image": str(prediction.image), "rank": rank, **found}
        for rank, found in enumerate(_classes(prediction), start=1)
    ]


def prediction_document(prediction: Prediction) -> dict[str, object]:
    """Return an image and its classes for JSON."""
    return {"image": str(prediction.image), "classes": _classes(prediction)}


def _classes(prediction: Prediction) -> list[dict[str, object]]:
    found = zip(prediction.indices, prediction.names, prediction.probabilities, strict=True)
    return [dict(zip(("index", "name", "probability"), values, strict=True)) for values in found]

"""What was shown of an ONNX file when it was exported or verified, as rows and sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recal.export.forms import Evidence
    from recal.export.verify import Comparison
    from recal.onnx_file.record import Proof
    from recal.report.blocks import Block


def export_blocks(evidence: Evidence, images: str) -> list[Block]:
    """Return how an exported file compares with PyTorch.

    Args:
        evidence: What `export_onnx` returned.
        images: The images that were compared, such as `40 images of cifar10/test`.
    """
    if evidence.int8 is not None:
        return _int8_sentences(evidence, images)
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
    """Return how a file compares with its checkpoint and variants.

    Args:
        found: What `verify_against` returned.
        checkpoint: Name of the checkpoint.
        images: The images that were compared, such as `40 images of cifar10/test`.
    """
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
    return blocks


def evidence_rows(evidence: Evidence) -> list[dict[str, object]]:
    """Return one row for each variant in a file, for CSV."""
    return [
        {
            "variant": name,
            "images": proof.images,
            "difference": proof.difference,
            "tolerance": proof.tolerance,
            "hostile_inputs": proof.hostile_inputs,
            "hostile_difference": proof.hostile_difference,
        }
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
    return (
        f"largest difference of a logit {proof.difference:.1e} (at most {proof.tolerance:.1e}); on "
        f"{proof.hostile_inputs} hostile inputs {proof.hostile_difference:.1e} of the largest "
        "logit."
    )


def _int8_sentences(evidence: Evidence, images: str) -> list[Block]:
    made = evidence.int8
    assert made is not None
    proof, used = made.proof, made.range_images
    blocks: list[Block] = [f"Ranges of {used.images} '{used.policy}' images."]
    if proof.accuracies:
        shown = ", ".join(f"{name} {value:.2%}" for name, value in proof.accuracies.items())
        blocks.append(
            f"Accuracy on {images}: {shown}; lost {proof.drop:.2%} ± {proof.drop_error:.2%} (at "
            f"most {made.max_drop:.2%})."
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

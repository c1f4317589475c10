"""From a variant to an ONNX file with proof; needs torch."""

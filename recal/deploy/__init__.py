"""From a built variant to an ONNX file, with proof."""

"""Everything that a machine without torch does with an ONNX file."""

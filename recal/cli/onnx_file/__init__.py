"""Commands that write, check and run ONNX files."""

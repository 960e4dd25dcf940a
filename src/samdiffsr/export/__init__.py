"""A pipeline as ONNX files, and what runs them without torch."""

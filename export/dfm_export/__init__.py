"""ONNX and TensorRT: convert, check parity, run."""

"""Checkpoint to bundle: ONNX, INT8, proof of parity, NVIDIA's compiler, packing (host)."""

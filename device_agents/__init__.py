"""Small programs that run on the Orin: frame and window in, inspection out (no torch, no onnx)."""

"""The engine: what runs a model on the device, on onnxruntime or on TensorRT, behind one door."""

"""What a model is: a folder with a manifest, ONNX graphs and tokenizers, read and checked."""

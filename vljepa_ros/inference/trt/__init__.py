"""The TensorRT backend: `tensorrt` and `tensorrt_rtx`, the same code over two libraries.

Invariant: importing this package imports neither library, nor PyCUDA, nor ONNX.
"""

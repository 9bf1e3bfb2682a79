"""What a bundle can do, measured on episodes and streams that training never saw.

Invariant: everything is measured through the bundle as the robot runs it (ONNX graphs, gate,
detector, decoder), never through the torch model; every figure stands beside chance and a baseline.
"""

"""Data, losses, stages and evaluation: how a VL-JEPA is trained, never what runs on the robot."""

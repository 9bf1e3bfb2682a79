"""LeRobot data sets (v2.0, v2.1, v3.0) as recordings, with PyArrow and PyAV, without `lerobot`."""

"""What runs a bundle: engines of every backend, the networks as one object; no ROS, no torch."""

"""Perception: from camera pictures to a semantic stream, without ROS and without torch."""

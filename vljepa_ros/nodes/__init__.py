"""Thin ROS 2 nodes: parameters, topics, services, lifecycle, diagnostics. No maths."""

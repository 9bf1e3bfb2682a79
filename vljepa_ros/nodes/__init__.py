"""The nodes: parameters, topics, services, lifecycle (docs/ros-api.md). Thin: no maths."""

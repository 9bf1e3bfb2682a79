"""vljepa_ros: VL-JEPA for ROS 2. A robot that understands continuously and speaks only on change."""

__version__ = "0.1.0"

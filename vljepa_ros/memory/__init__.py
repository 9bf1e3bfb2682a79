"""Memory: moments that can be searched by meaning and time, without ROS and without torch."""

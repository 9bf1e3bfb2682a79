"""The runtime: model bundles and the engines that run them, without ROS and without torch."""

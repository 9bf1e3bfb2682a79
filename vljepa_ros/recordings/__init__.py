"""Recordings as streams: bags, videos, folders of images; needs no ROS."""

"""A simulated robot's view of a table: physics, pictures, truth and language."""

import os

os.environ.setdefault("MUJOCO_GL", "osmesa")  # software rendering: works with no display and no GPU

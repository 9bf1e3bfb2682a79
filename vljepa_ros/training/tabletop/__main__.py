"""`python -m vljepa_ros.tabletop SPLIT EPISODES [WORKERS]`: fills the data cache."""

import sys

from vljepa_ros.tabletop.store import default_root, generate

if __name__ == "__main__":
    split, episodes, workers = [*sys.argv[1:], "2"][:3]
    generate(default_root(), split, int(episodes), int(workers))

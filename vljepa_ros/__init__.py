"""VL-JEPA for ROS 2: a robot that understands continuously and speaks only on change.

What lies where, and which room may import which, is in docs/architecture.md.
"""

import os
import re
from pathlib import Path
from pkgutil import extend_path

# In the source folder Python finds this package before the built one, which alone holds the
# generated interfaces; they are to be found all the same.
__path__ = extend_path(__path__, __name__)

# A robot tells nobody what it runs. ONNX Runtime from 1.29 on looks at this when it is imported;
# else it keeps a device id in ~/.cache/Microsoft and sends events to its makers.
for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")


def _version() -> str:
    """What package.xml says: of the sources, or in `share` of the installation around this file."""
    for folder in Path(__file__).resolve().parents:
        for name in ("package.xml", "share/vljepa_ros/package.xml"):
            file = folder / name
            if file.is_file() and "<name>vljepa_ros</name>" in (text := file.read_text("utf-8")):
                return re.findall(r"<version>(.+?)</version>", text)[0]
    return "unknown"


__version__ = _version()

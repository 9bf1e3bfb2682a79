"""VL-JEPA for ROS 2: a robot that understands continuously and speaks only on change."""

from pkgutil import extend_path

# In the source folder Python finds this package before the built one, which alone holds the
# generated interfaces; they are to be found all the same.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"

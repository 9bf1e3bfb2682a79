"""For agents' own nodes: `from vljepa_ros.client import SemanticClient`."""

from .calls import Call, SemanticError, SemanticTimeout
from .semantics import Listening, SemanticClient

__all__ = ["Call", "Listening", "SemanticClient", "SemanticError", "SemanticTimeout"]

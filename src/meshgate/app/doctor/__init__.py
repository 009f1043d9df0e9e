"""`meshgate doctor`: every prerequisite of a mesh gateway, looked up in the live agent and on this machine."""

from .examination import examine

__all__ = ["examine"]

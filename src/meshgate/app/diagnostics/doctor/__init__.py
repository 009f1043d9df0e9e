"""`meshgate doctor`: every prerequisite of a mesh gateway, looked up in the live agent and on this machine."""

from meshgate.app.diagnostics.doctor.examination import examine

__all__ = ["examine"]

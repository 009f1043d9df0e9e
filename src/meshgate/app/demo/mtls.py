"""The mesh's TLS stream, under the name by which the demo's users know it."""

from meshgate.adapters.mesh_tls import RefusedError, TlsStream, alert_name

__all__ = ["RefusedError", "TlsStream", "alert_name"]

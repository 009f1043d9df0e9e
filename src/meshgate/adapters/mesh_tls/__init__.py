"""mTLS of the mesh as a sidecar does it: the stream, the identity that it shows, and the one that it meets.

The gateway itself never comes here: it holds no key. `meshgate probe`, the demo and the tests do.
"""

from .dial import Peer, connect, peer_of, shake_hands
from .identity import WrongPeerError, mesh_context, spiffe_id, verify
from .stream import RefusedError, TlsStream, alert_name

__all__ = [
    "Peer",
    "RefusedError",
    "TlsStream",
    "WrongPeerError",
    "alert_name",
    "connect",
    "mesh_context",
    "peer_of",
    "shake_hands",
    "spiffe_id",
    "verify",
]

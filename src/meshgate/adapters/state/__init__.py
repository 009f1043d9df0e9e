"""The state file: the last known good catalog on disk, for a start without Consul.

`read` and `StateKeeper` are all there is to it: `read` refuses whatever is not whole, ours and safe, in one clear line;
`StateKeeper` writes without ever holding up or failing the gateway.
"""

from .state_file import NAME, VERSION, Kept, StateFileError, read, write
from .state_keeper import StateKeeper

__all__ = ["NAME", "VERSION", "Kept", "StateFileError", "StateKeeper", "read", "write"]

"""meshgate: a Consul mesh gateway that forwards mTLS streams by SNI and never terminates them."""

__version__ = "0.1.0"

"""Real parts on this machine: Consul datacenters, mTLS sidecars and callers, for the demo and the end-to-end tests.

Everything listens on 127.0.0.1, lives in one temporary folder and is stopped and removed at the end. Nothing here is
part of a running gateway.
"""

"""Decisions without I/O: bytes and records in, decisions out.

Nothing in this ring opens a socket, reads a clock or knows a library that does; import-linter holds that.
"""

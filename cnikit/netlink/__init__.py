"""Netlink messages as bytes and as values; no sockets."""

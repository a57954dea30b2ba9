"""The bytes of an owner's reply: the msgpack of `[VALUE, value]`, or of `[ERROR, type, text]`."""

VALUE, ERROR, REPEATED = 0, 1, 2
"""REPEATED is a VALUE that is given again, as the flow runs again (G5), once owners have revoked offloads: it may be older than
that, so what is offloaded on it is void."""

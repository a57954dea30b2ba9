"""The handlers of a flow actor, by name. The compiled core numbers them, in the same order, in handlers.pxd."""

HANDLERS = ("on_open", "on_packet", "on_close", "on_message", "on_mirror")

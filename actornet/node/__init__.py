"""The node: processes, supervision, control plane and the link to the peer."""

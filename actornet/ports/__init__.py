"""Ports: where packets enter and leave a core."""

"""Replication, pure: no I/O, clock, thread or random; time is an argument."""

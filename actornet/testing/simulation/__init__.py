"""A seeded, deterministic simulator of a whole pair: the real owner systems, cores, log and link protocol in one thread."""

"""The compiled packet engine: parsing, flow table, rewriting, the core's loop."""

"""The log: records in one total order, stored in LMDB."""

"""What users and we test network functions with."""

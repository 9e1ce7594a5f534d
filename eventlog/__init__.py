"""The append-only log: canonical records, a Merkle tree over them, SQLite beneath. Knows nothing of NAT."""

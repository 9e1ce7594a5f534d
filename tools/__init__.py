"""The `porthold` command: one file per command, and what the demonstration and the laboratory need."""

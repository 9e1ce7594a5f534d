"""Who holds which port: decides each claim, appends it to the log, then answers. Knows nothing of packets."""

"""The worker on a gateway: packets, rulesets and the kernel. Decides nothing about ownership."""

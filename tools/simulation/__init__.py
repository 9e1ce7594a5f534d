"""The deterministic simulation: the real tracker, worker, outbox and log under simulated system calls."""

"""What every node has: lifecycle, worker, parameters, diagnostics, engines, how a process ends."""

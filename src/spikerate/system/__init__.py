"""What a run needs from the machine: processes, signals, files, a record of the hardware. Knows nothing of networks."""

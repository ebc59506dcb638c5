"""What a run needs of the machine: processes, signals, files, the environment card; knows nothing of networks."""

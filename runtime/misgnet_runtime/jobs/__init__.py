"""Jobs of the commands: from input files to output files, written atomically and resumable."""

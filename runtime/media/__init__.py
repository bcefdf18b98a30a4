"""Video in and out: containers, image directories and pipes, through PyAV."""

"""Models: what families differ in, loading a checkpoint, preparing its inputs."""

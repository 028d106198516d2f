"""/proc, read: what tasks watch, which mounts they see, whom the kernel charges."""

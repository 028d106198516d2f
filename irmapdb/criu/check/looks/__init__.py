"""The looks of `check`: each asks the kernel one thing as CRIU asks it, and decides nothing."""

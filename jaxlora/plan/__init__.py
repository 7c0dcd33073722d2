"""What a run needs of a TPU slice, told by compiling it for that slice where there is none."""

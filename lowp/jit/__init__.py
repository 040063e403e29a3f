"""Compile kernels with NVRTC, cache them on disk, load and launch them: for every kernel of ours."""

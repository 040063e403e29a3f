"""Attention over a quantised ring of frames, against a BF16 ring and the rolled cache of the earlier design."""

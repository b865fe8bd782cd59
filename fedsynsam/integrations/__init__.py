"""The compressor inside other people's training code."""

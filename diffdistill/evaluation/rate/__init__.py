"""Rate against distortion: classic codecs, curves, and the bits that one codec needs beside another."""

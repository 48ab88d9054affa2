"""Files in, frames out, and back: probe, decode, encode."""

"""The network: three parts and the wiring."""

"""Errors, files, console and other small things that all rooms use."""

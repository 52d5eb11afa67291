"""The laboratory: what talks to files, screens and people. The core never imports it."""

"""Real parts and emulated ones: how they are started, asked and stopped."""

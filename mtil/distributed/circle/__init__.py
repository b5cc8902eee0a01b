"""The coordinator and the driver that follows it."""

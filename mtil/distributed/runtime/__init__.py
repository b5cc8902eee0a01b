"""The connection to Ray, resources, failures, gauges."""

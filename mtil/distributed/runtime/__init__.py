"""Connection to Ray, resource planning, failures and gauges."""

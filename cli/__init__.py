"""opsctl: thin commands over exporter, runbooks, alarms and dashboards."""

"""What an objective turns into when it is burning: rules and alarms."""

"""CloudWatch: a template of alarms, what is wrong with one, and how CloudWatch would judge it."""

"""CloudWatch: few metrics of a fleet, as PutMetricData or as embedded metric format."""

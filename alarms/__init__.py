"""What an objective turns into when it is burning: rules and alarms. Objectives live in vllm_opsctl.exporter.config."""

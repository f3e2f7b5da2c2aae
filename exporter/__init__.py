"""
The sidecar and the vocabulary: sources -> engine samples -> windows and SLIs -> sinks.

Start reading at :mod:`vllm_opsctl.exporter.engine`.
"""

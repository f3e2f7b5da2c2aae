"""``python -m vllm_opsctl`` is `opsctl`."""

from vllm_opsctl.cli.main import main

main()

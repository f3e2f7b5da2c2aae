"""An alert as SNS delivers it."""

from __future__ import annotations

import json

TEXT = """\
FIRING critical: tiny burns the error budget of ttft more than 14.4 times too fast.
61% of the events of tiny waited longer than 500 ms for their first token over the last 5m.
Diagnose: opsctl diagnose --sidecar http://127.0.0.1:9836 chat-0
Runbook: https://runbooks.example.com/vllm/engine-dead
Since: 2026-11-25 03:14:00 UTC

"""


def notification(message: str, **attributes: str) -> str:
    """As SNS delivers it to SQS and HTTP."""
    return json.dumps(
        {
            "Type": "Notification",
            "Subject": "[FIRING:1] LLMSLOErrorBudgetBurn ttft tiny",
            "Message": message,
            "Timestamp": "2026-11-25T03:14:31.000Z",
            "MessageAttributes": {
                name: {"Type": "String", "Value": text} for name, text in attributes.items()
            },
        }
    )

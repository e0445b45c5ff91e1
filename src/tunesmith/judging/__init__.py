"""How good answers are: metrics per sample, means with their errors, and a report to read.

Owns what is measured and how it is shown. Refuses to know models, teachers and recipes.
"""

from __future__ import annotations

from tunesmith.registry import Registry

METRICS = Registry(
    "metric",
    {
        "json_valid": "tunesmith.judging.metrics:json_valid",
        "schema_valid": "tunesmith.judging.metrics:schema_valid",
        "fields": "tunesmith.judging.metrics:field_accuracy",
        "exact_match": "tunesmith.judging.metrics:exact_match",
        "rouge_l": "tunesmith.judging.metrics:reply_rouge_l",
    },
)
"""Members by name. Each is a function (answer, reference, target) -> {score name: Score}; see metrics.Metric."""

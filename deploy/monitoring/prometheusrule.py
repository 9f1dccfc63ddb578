"""Writes prometheusrule.yaml, which is rules.yaml for the Prometheus operator."""

from pathlib import Path

HEAD = """\
# Made of rules.yaml by prometheusrule.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: coalesce
spec:
"""


def prometheusrule(rules: str) -> str:
    """The same rules, one level down."""
    lines = [line for line in rules.splitlines() if not line.startswith("#")]
    return HEAD + "".join(f"  {line}\n" for line in lines)


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "prometheusrule.yaml").write_text(prometheusrule((here / "rules.yaml").read_text()))

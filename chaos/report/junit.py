"""A report as JUnit XML, which every CI shows: one test case per trial and invariant. INCONCLUSIVE is an error there,
neither a failure nor a pass."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from xml.etree import ElementTree as ET

from chaos.findings import Finding, Verdict
from chaos.verdict import Report

__all__ = ["junit"]

#: What XML 1.0 cannot hold, escaped or not.
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """The XML text."""
    suites = ET.Element("testsuites", name="quarterdeck chaos")
    for act in report.acts:
        name = act.act if act.n == 1 else f"{act.act} #{act.n}"
        suite = _suite(suites, name, act.findings, time_s=act.duration_s)
        for key, value in (("seed", act.seed), ("title", act.title)):
            if value:
                properties = suite.find("properties")
                if properties is None:
                    properties = ET.Element("properties")
                    suite.insert(0, properties)
                ET.SubElement(properties, "property", name=key, value=_clean(value))
    _suite(suites, "the whole history", report.findings)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _suite(suites: ET.Element, name: str, findings: Iterable[Finding], *, time_s: float = 0.0) -> ET.Element:
    findings = list(findings)
    count = {verdict: sum(1 for finding in findings if finding.verdict is verdict) for verdict in Verdict}
    suite = ET.SubElement(
        suites,
        "testsuite",
        name=_clean(name),
        tests=str(len(findings)),
        failures=str(count[Verdict.FAIL]),
        errors=str(count[Verdict.INCONCLUSIVE]),
        time=f"{time_s:.3f}",
    )
    for finding in findings:
        case = ET.SubElement(suite, "testcase", classname=_clean(name), name=_clean(finding.rule), time="0")
        said = "\n".join([*([finding.note] if finding.note else []), *finding.violations])
        if finding.verdict is Verdict.FAIL:
            message = f"{finding.violated} violations in {finding.checked} checked"
            ET.SubElement(case, "failure", message=message, type="FAIL").text = _clean(said)
        elif finding.verdict is Verdict.INCONCLUSIVE:
            message = finding.note or "too little to tell"
            ET.SubElement(case, "error", message=_clean(message), type="INCONCLUSIVE").text = _clean(said)
        elif finding.note:
            ET.SubElement(case, "system-out").text = _clean(finding.note)
    return suite


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)

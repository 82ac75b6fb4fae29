"""`python .ci/audit.py FILE ...`: pip-audit over pinned requirements, with an exit code that tells its answers apart.

0: the packages were compared with the advisory database, none has a known vulnerability. 4: at least one has.
3: the database could not be reached, or does not know the packages (a mirror without advisories): nothing was audited.
Advisories that do not concern us stand in `.ci/audit-known.txt`: one per line, its id, then why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CLEAN, VULNERABLE, NOT_AUDITED = 0, 4, 3
KNOWN = Path(__file__).with_name("audit-known.txt")
SECONDS = 120


def main(files: list[str]) -> int:
    """See the module."""
    command = [
        sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off",
        "--disable-pip", "--no-deps", "--timeout", "5", *(word for file in files for word in ("--requirement", file)),
        *(word for advisory in known(KNOWN) for word in ("--ignore-vuln", advisory)),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(f"Not audited: the advisory database did not answer within {SECONDS} seconds.")
        return NOT_AUDITED
    code, text = verdict(done.stdout, done.stderr)
    print(text)
    return code


def known(path: Path) -> list[str]:
    """The ids in that file; each has to have a reason behind it."""
    lines = [line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    lines = [line for line in lines if line]
    without = [line[0] for line in lines if len(line) == 1]
    if without:
        raise SystemExit(f"{path}: no reason is given for {', '.join(without)}.")
    return [line[0] for line in lines]


def verdict(said: str, errors: str) -> tuple[int, str]:
    """(exit code, what to print) of what pip-audit said as JSON on stdout, and on stderr."""
    try:
        packages = json.loads(said)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (errors.strip() or said.strip() or "it said nothing").splitlines()[-1][:300]
        return NOT_AUDITED, f"Not audited: pip-audit could not ask the advisory database ({reason})."
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    bad = [(package, found) for package in packages for found in package.get("vulns", ())]
    if bad:
        lines = [
            f"{package['name']} {package['version']}: {found['id']}"
            f" (mended in {', '.join(found['fix_versions']) or 'no version yet'})"
            for package, found in bad
        ]
        return VULNERABLE, "\n".join(["Known vulnerabilities:", *lines])
    audited = len(packages) - len(unknown)
    if not audited:
        return NOT_AUDITED, f"Not audited: the index that answered knows no advisories ({len(unknown)} packages)."
    rest = f"; not audited, for the index does not have them: {', '.join(unknown)}" if unknown else ""
    return CLEAN, f"No known vulnerability in {audited} packages{rest}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Run the producers themselves, and publish what they write at this moment.

Each of these tests is skipped where its producer is not installed. LiteLLM and OpenTelemetry's SDK have environments of
their own, so that they do not change keytally's: `.producers/litellm`, `.producers/otel` and
`.producers/otel-openai-v2`. The text file of the same name beside this module lists what each of them holds.
`.ci/run` makes them.
"""

from __future__ import annotations

import re
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import Place
from tests.producers import make_nginx
from tests.producers.make_nginx import NGINX, Nginx
from tests.producers.published import SAMPLES, assert_counted, assert_published_as_counted, read_expected
from tests.producers.test_logrotate import DOCUMENTED_LOG, LOGROTATE, needs_logrotate, stanza

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".producers"
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")


def made_by(environment: str, module: str, folder: Path) -> list[Path]:
    """Have a producer write its logs in its own environment; return what the caller counted, log by log."""
    place = ENVIRONMENTS / environment
    if not (place / ".ready").exists():
        pytest.skip(f"{place.relative_to(ROOT)} is not there: .ci/run makes it")
    command = [str(place / "bin/python"), "-m", f"tests.producers.{module}", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = sorted(folder.glob("*.expected.json"))
    assert found
    return found


@pytest.mark.parametrize(
    ("environment", "module", "logs"),
    [("litellm", "make_litellm", 1), ("otel", "make_otel", 3), ("otel-openai-v2", "make_otel", 2)],
)
def test_a_producer_writes_what_its_caller_counted(environment: str, module: str, logs: int, tmp_path: Path) -> None:
    found = made_by(environment, module, tmp_path / "made")
    assert len(found) == logs
    for number, path in enumerate(found):
        (log,) = (other for other in path.parent.glob(f"{path.name.removesuffix('expected.json')}jsonl*"))
        assert_published_as_counted(tmp_path / f"data{number}", log, read_expected(path))


@needs_nginx
def test_nginx_writes_what_its_caller_counted(tmp_path: Path) -> None:
    make_nginx.main(tmp_path / "made")
    (path,) = (tmp_path / "made").glob("*.expected.json")
    (log,) = (tmp_path / "made").glob("nginx-*.jsonl")
    assert_published_as_counted(tmp_path / "data", log, read_expected(path))


@needs_nginx
@needs_logrotate
@pytest.mark.parametrize("name", ["dateext", "number", "copytruncate"])
def test_nginx_goes_on_while_its_log_is_rotated(name: str, tmp_path: Path) -> None:
    """nginx holds its log open: after a rename it writes into the new one as soon as it gets the stanza's signal."""
    place = Place(tmp_path / "data", KEYTALLY_CURRENCY="USD")
    place.layout.root.chmod(0o700)
    (place.layout.root / "prices.csv").write_bytes((SAMPLES / "prices.csv").read_bytes())
    log = place.layout.raw / "nginx/access.jsonl"
    log.parent.mkdir(mode=0o755)
    with make_nginx.api() as upstream, Nginx(tmp_path / "nginx", upstream, log) as nginx:
        text = re.sub(r"create 0640 \S+ \S+", "create", stanza(name)).replace("/run/nginx.pid", str(nginx.pid))
        text = re.sub(r" +prerotate\n.*?endscript\n", "", text, flags=re.DOTALL)  # test_logrotate.py runs it
        (tmp_path / "stanza").write_text(text.replace(DOCUMENTED_LOG, str(log)))
        (tmp_path / "stanza").chmod(0o600)
        calls = make_nginx.make_calls(nginx)
        command = [LOGROTATE or "", "--force", "--state", str(tmp_path / "state"), str(tmp_path / "stanza")]
        subprocess.run(command, check=True, capture_output=True)
        before = {path.name: path.stat().st_size for path in log.parent.iterdir()}
        more = make_nginx.make_calls(nginx, again=True)
        place.now = datetime.now().astimezone() + timedelta(seconds=2)
    assert len(before) == 2
    assert log.stat().st_size > before[log.name], "nginx went on writing into the rotated log"
    place.roll_up()
    assert_counted(place, calls + more)
